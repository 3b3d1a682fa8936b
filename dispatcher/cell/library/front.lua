-- The front of the heads: of each index the first ones in order, kept from call to call, so that a pull neither reads the
-- heads nor writes each that has moved on.
--
-- It has the true keys. Those that are stored may be too early, never too late, for a front goes with the server's
-- memory. Whoever takes a shape's first task learns its true key, and puts it back if others come before (pull.lua).
--
-- A front holds as long as nobody else changes what is parked. Each call that does counts in :front: a server that has
-- been a replica meanwhile, or whose data went back in time, finds a count that is not its own and begins another.
--
-- The front of an index is { rows in order, of = rows by text, bound = all heads with earlier keys are in rows (math.huge:
-- all heads), at = the first row that a pull may still take, key = of that row, false if not known }; a row { key, text,
-- is_stale: what is stored is earlier, ahead = keys of the tasks behind the first one, the next one last }.

local front = {}

do

local AT_ONCE = 64 -- heads that are read at once
local AHEAD = 8 -- keys of a park that are read at once, with their entries
local AHEAD_BYTES = 16384 -- fewer if they are large
local LOOKED_AT = 32 -- of them, that one pull looks at
local MAX_ROWS = 20000 -- after so many all is forgotten: shapes come and go
local HUGE = 1 / 0
local fronts, count, remove = {}, 0, nil

local function of_call(c)
  local found = c.front
  if found then return found end
  local told = call('INCR', key(c, ':front'))
  remove = remove or table.remove
  if count > MAX_ROWS then fronts, count = {}, 0 end
  found = fronts[c.root]
  if not found or told ~= found.told + 1 then
    told = 1000 * c.now + c.usec % 1000 -- in microseconds: no other front has counted from there
    call('SET', key(c, ':front'), string.format('%d', told))
    found = { indexes = {} }
    fronts[c.root] = found
  end
  found.told = told
  c.front = found
  return found
end

local function insert(rows, row)
  local n, order_key, text = #rows, row.key, row.text
  local other = rows[n]
  while other and (order_key < other.key or order_key == other.key and text < other.text) do -- most come at the end
    rows[n + 1] = other
    n = n - 1
    other = rows[n]
  end
  rows[n + 1] = row
end

-- Read the first heads of an index, after what is stored of them has been made true.
local function read(index)
  local stale = {}
  for _, row in ipairs(index.rows) do
    if row.is_stale then stale[#stale + 1], stale[#stale + 2] = number(row.key), row.text end
  end
  in_chunks('ZADD', index.heads, stale, 4000)
  local flat = call('ZRANGE', index.heads, 0, AT_ONCE - 1, 'WITHSCORES')
  index.bound = #flat < 2 * AT_ONCE and HUGE or flat[#flat] + 0
  index.rows, index.of, index.at, index.key = {}, {}, 1, false
  for i = 1, #flat, 2 do
    local row = { key = flat[i + 1] + 0, text = flat[i], is_stale = false, ahead = NONE }
    index.rows[#index.rows + 1], index.of[row.text] = row, row
  end
  count = count + #index.rows
end

-- The front of an index for one more pull.
function front.of(c, name)
  local indexes = of_call(c).indexes
  local index = indexes[name]
  if not index then
    index = { heads = c.root .. ':heads:' .. name, rows = NONE, of = NONE, bound = 0, at = 1, key = false }
    indexes[name] = index
    read(index)
  end
  index.at, index.key = 1, false
  return index
end

-- Key of the row that a pull looks at next; math.huge: there is none.
function front.key_of(index)
  if not index.rows[index.at] and index.bound < HUGE and index.at <= LOOKED_AT then read(index) end
  local row = index.at <= LOOKED_AT and index.rows[index.at]
  index.key = row and row.key or HUGE
  return index.key
end

-- The first task of the row that a pull looks at has this key now.
local function move(index, row, order_key)
  local rows, at = index.rows, index.at
  row.key, row.is_stale = order_key, true
  remove(rows, at)
  if order_key < index.bound then
    insert(rows, row)
  else
    index.of[row.text] = nil
    call('ZADD', index.heads, number(order_key), row.text)
  end
  index.key = rows[at] and rows[at].key or false
end

-- Whether the first task of that row, which has this key, is no later than was told. If it is, the row has moved.
function front.is_first(index, row, order_key)
  if order_key == row.key then return true end
  row.ahead = NONE
  if order_key < row.key then return true end
  move(index, row, order_key)
  return false
end

-- The first task of that row, whose entry had this size, has left the park. False if it was the last.
function front.advance(index, row, park, size)
  local ahead = row.ahead
  local n = #ahead
  if n == 0 then
    local wanted = size * AHEAD <= AHEAD_BYTES and AHEAD or math.ceil(AHEAD_BYTES / size)
    local flat = call('ZRANGE', park, 0, wanted - 1, 'WITHSCORES')
    n = #flat / 2
    if n == 0 then return false end
    ahead = {}
    for i = 1, n do ahead[n + 1 - i] = flat[2 * i] + 0 end
    row.ahead = ahead
  end
  local order_key = ahead[n]
  ahead[n] = nil
  move(index, row, order_key)
  return true
end

-- Whether a head is known that is no later.
function front.has_earlier(c, shape, order_key)
  local index = of_call(c).indexes[shape.index]
  local row = index and index.of[shape.text]
  if not row then return false end
  if order_key < (row.ahead[1] or 0) then row.ahead = NONE end -- it comes among them
  return row.key <= order_key
end

-- The head of a shape has been stored with this key, or an earlier one; nil: it has none.
function front.put(c, shape, order_key)
  local index = of_call(c).indexes[shape.index]
  if not index then return end
  local row, rows = index.of[shape.text], index.rows
  index.key = false
  for at = 1, row and #rows or 0 do
    if rows[at] == row then
      remove(rows, at)
      index.of[shape.text] = nil
      break
    end
  end
  if order_key and order_key < index.bound then
    row = row or { text = shape.text, is_stale = false }
    row.key, row.ahead, index.of[shape.text] = order_key, NONE, row
    insert(rows, row)
    count = count + 1
  end
end

-- Heads may have been changed otherwise.
function front.change(c)
  of_call(c).indexes = {}
end

-- A call has failed, and is taken back.
function front.drop(c)
  fronts[c.root], c.front = nil, nil
end

end
