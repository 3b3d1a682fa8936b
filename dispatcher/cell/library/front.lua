-- The front of the heads: of each index the first ones in order, kept from call to call, so that a pull neither reads the
-- heads nor writes each that has moved on.
--
-- What is stored of a head may be too early, never too late: true keys that only a front knew go with the server's
-- memory. So a row that was read is known only once the first key of its park has been looked up.
--
-- A front holds as long as nobody else changes what is parked. Each call that does counts in :front: a server that has
-- been a replica meanwhile, or whose data went back in time, finds a count that is not its own and begins another.
--
-- The front of an index is { rows in order, of = rows by text, bound = all heads with earlier keys are in rows (math.huge:
-- all heads), at = the first row that a pull may still take, key = of that row, false if not known }; a row { key, text,
-- is_known: the key is true, is_stale: what is stored is earlier, ahead = keys of the tasks behind the first one, the next
-- one last }. Of equal keys the earlier text is first; of those at the bound any.

local front = {}

-- Key of the first task of a park; math.huge: there is none.
local function first_key(park)
  return tonumber(call('ZRANGE', park, 0, 0, 'WITHSCORES')[2] or math.huge)
end

do

local AT_ONCE = 64 -- heads that are read at once
local MOST = 128 -- that are kept of one index; no more are stored as too early (tick.lua, HEADS_PER_INDEX)
local LOOKED_AT = 32 -- that one pull looks at
local AHEAD = 8 -- keys of a park that are read at once, with their entries
local AHEAD_BYTES = 16384 -- fewer if they are large
local MAX_LOOKS = 256 -- parks that are looked up in one call
local MAX_ROWS, MAX_CELLS = 20000, 100 -- beyond that all are forgotten
local HUGE = 1 / 0
local fronts, rows_in_all, cells = {}, 0, 0
local remove

local function empty(found)
  for _, index in pairs(found.indexes) do rows_in_all = rows_in_all - #index.rows end
  found.indexes = {}
end

local function forget(root)
  if not fronts[root] then return end
  empty(fronts[root])
  fronts[root], cells = nil, cells - 1
end

local function of_call(c)
  local found = c.front
  if found then return found end
  remove = remove or table.remove
  local told = redis.pcall('INCR', key(c, ':front')) -- whatever it is: damage must not stop the cell
  found = fronts[c.root]
  if not found or told ~= found.told + 1 or rows_in_all > MAX_ROWS then
    forget(c.root)
    if cells >= MAX_CELLS or rows_in_all > MAX_ROWS then fronts, rows_in_all, cells = {}, 0, 0 end
    told = 1000 * c.now + c.usec % 1000 -- in microseconds: no other front has counted from there
    call('SET', key(c, ':front'), string.format('%d', told))
    found = { indexes = {} }
    fronts[c.root], cells = found, cells + 1
  end
  found.told = told
  c.front = found
  return found
end

-- Behind all that come before; at `first` or later.
local function insert(rows, row, first)
  local n, order_key, text = #rows, row.key, row.text
  local other = rows[n] -- most come at the end
  while n >= first and (order_key < other.key or order_key == other.key and text < other.text) do
    rows[n + 1] = other
    n = n - 1
    other = rows[n]
  end
  rows[n + 1] = row
end

local function take_out(index, row, at)
  remove(index.rows, at)
  index.of[row.text] = nil
  rows_in_all = rows_in_all - 1
end

-- Store the keys of those rows, from the first on, that are stored as too early.
local function store(index, first)
  local stale = {}
  for at = first, #index.rows do
    local row = index.rows[at]
    if row.is_stale then
      stale[#stale + 1], stale[#stale + 2] = number(row.key), row.text
      row.is_stale = false
    end
  end
  in_chunks('ZADD', index.heads, stale, 4000)
end

-- Read the first heads of an index anew.
local function read(index)
  store(index, 1)
  local flat = call('ZRANGE', index.heads, 0, AT_ONCE - 1, 'WITHSCORES')
  local of, rows = {}, {}
  for i = 1, #flat, 2 do
    local text = flat[i]
    local row = index.of[text] or { key = flat[i + 1] + 0, text = text, is_known = false, is_stale = false, ahead = NONE }
    rows[#rows + 1], of[text] = row, row
  end
  rows_in_all = rows_in_all + #rows - #index.rows
  index.rows, index.of, index.at, index.key = rows, of, 1, false
  index.bound = #flat < 2 * AT_ONCE and HUGE or rows[#rows].key
end

-- Keep no more than so many rows.
local function cut(index)
  local rows = index.rows
  if #rows <= MOST then return end
  store(index, AT_ONCE + 1)
  index.bound = rows[AT_ONCE + 1].key
  for at = #rows, AT_ONCE + 1, -1 do take_out(index, rows[at], at) end
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

-- The row that a pull looks at has this key.
local function move(index, row, order_key)
  local rows, at = index.rows, index.at
  row.key, row.is_stale = order_key, true
  if order_key < index.bound then
    remove(rows, at)
    insert(rows, row, at)
  else
    take_out(index, row, at)
    call('ZADD', index.heads, number(order_key), row.text)
  end
  row = rows[at]
  index.key = row and row.is_known and row.key
end

-- Key of the row that a pull looks at next; math.huge: there is none.
function front.key_of(c, index)
  while index.at <= LOOKED_AT do
    local row = index.rows[index.at]
    if row and row.is_known then
      index.key = row.key
      return row.key
    end
    if row and c.looks == MAX_LOOKS or not row and index.bound == HUGE then break end
    if row then
      c.looks, row.is_known = c.looks + 1, true
      local order_key = first_key(c.root .. ':park:' .. row.text)
      if order_key ~= row.key and order_key < HUGE then move(index, row, order_key) end
    else
      read(index)
    end
  end
  index.key = HUGE
  return HUGE
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

-- Nothing is parked of that row.
function front.leave(index, row)
  take_out(index, row, index.at)
  index.key = false
end

-- Whether a head is known that is no later.
function front.has_earlier(c, shape, order_key)
  local index = of_call(c).indexes[shape.index]
  local row = index and index.of[shape.text]
  if not row then return false end
  if order_key < (row.ahead[1] or 0) then row.ahead = NONE end -- it comes among them
  return row.key <= order_key
end

-- The head of a shape has this key, and is stored with it or an earlier one; nil: it has none.
function front.put(c, shape, order_key)
  local index = of_call(c).indexes[shape.index]
  if not index then return end
  index.key = false
  local rows, row = index.rows, index.of[shape.text]
  for at = 1, row and #rows or 0 do
    if rows[at] == row then
      take_out(index, row, at)
      break
    end
  end
  if not order_key or order_key >= index.bound then return end
  row = row or { text = shape.text, is_stale = false }
  row.key, row.is_known, row.ahead, index.of[shape.text] = order_key, true, NONE, row
  insert(rows, row, 1)
  rows_in_all = rows_in_all + 1
  cut(index)
end

-- Heads may have been changed otherwise.
function front.change(c)
  empty(of_call(c))
end

-- A call has failed, and is taken back.
function front.drop(c)
  forget(c.root)
  c.front = false
end

end
