-- In front of the library's text in the debug build of the tests (faulty.py). Every redis.call of the library is made
-- `faulty.call`; here alone redis.call is what it says.
--
-- tyf_faulty_arm      ARGV k: the k-th call of the library from now on fails, once; 0: none. reply: calls since the last arm
-- tyf_faulty_raw      reply: suffix, type, whether it expires, content, ... of every key of the cell
-- tyf_faulty_keep     copies the cell's keys aside; tyf_faulty_restore puts them back
-- A server runs one call at a time, so the count is that of the one function called since it was armed.

local faulty = { left = 0, calls = 0 }

do -- the library needs its locals for itself

local function count_down()
  faulty.calls = faulty.calls + 1
  if faulty.left == 0 then return end
  faulty.left = faulty.left - 1
  -- It disarms itself: taking back what was written uses calls too. A table, as redis.call raises it.
  if faulty.left == 0 then error({ err = 'FAULT at call ' .. faulty.calls }) end
end

function faulty.call(...)
  count_down()
  return redis.call(...)
end

function faulty.pcall(...)
  count_down()
  return redis.pcall(...)
end

redis.register_function{
  function_name = 'tyf_faulty_arm', flags = { 'no-writes' },
  callback = function(_, args)
    local calls = faulty.calls
    faulty.left, faulty.calls = tonumber(args[1]), 0
    return calls
  end,
}

local READ = {
  hash = { 'HGETALL' }, zset = { 'ZRANGE', 0, -1, 'WITHSCORES' }, stream = { 'XRANGE', '-', '+' }, set = { 'SMEMBERS' },
  string = { 'GET' },
}

redis.register_function{
  function_name = 'tyf_faulty_raw', flags = { 'no-writes' },
  callback = function(keys)
    local reply = {}
    for _, name in ipairs(redis.call('KEYS', keys[1] .. ':*')) do
      local kind = redis.call('TYPE', name).ok
      local command = READ[kind]
      reply[#reply + 1] = string.sub(name, #keys[1] + 2)
      reply[#reply + 1] = kind
      reply[#reply + 1] = redis.call('PTTL', name) >= 0 and 1 or 0
      reply[#reply + 1] = redis.call(command[1], name, unpack(command, 2))
    end
    return reply
  end,
}

local function copy_cell(from, to)
  for _, name in ipairs(redis.call('KEYS', to .. ':*')) do redis.call('DEL', name) end
  for _, name in ipairs(redis.call('KEYS', from .. ':*')) do
    redis.call('COPY', name, to .. string.sub(name, #from + 1))
  end
  return 1
end

redis.register_function('tyf_faulty_keep', function(keys) return copy_cell(keys[1], keys[1] .. '~') end)
redis.register_function('tyf_faulty_restore', function(keys) return copy_cell(keys[1] .. '~', keys[1]) end)

end
