-- The pull: an instance takes the best parked tasks of its types, as many as fit.

-- Put the first task of a shape, which has been taken out of the park, onto the instance. Returns 1; 0 if it came late.
local function take_first(c, instance, f, shape, first, via)
  local entry = first[1]
  local deadline, arrived, id = unpack_bytes('<ddHc0', entry, 13)
  unparked(c, shape, entry, id, first[2], deadline)
  if deadline > 0 and deadline < c.now then
    dead(c, entry, read_head(entry), 'deadline', 'its deadline passed while it was parked', '')
    return 0
  end
  place(c, instance, f, shape, entry, id, byte(entry, 2), via, bucket_of(c, arrived))
  return 1
end

-- Take the first task of the shape that an index's front is at. Returns how many came onto the instance and how many left
-- the park.
local function pop(c, instance, f, shape, index, row, via)
  local park, placed = shape.park, 0
  local first = call('ZPOPMIN', park)
  local entry = first[1]
  if entry then placed = take_first(c, instance, f, shape, first, via) end
  if not entry or not front.advance(index, row, park, #entry) then
    front.leave(index, row)
    refresh_head(c, shape)
  end
  return placed, entry and 1 or 0
end

-- The fronts of an instance's types that have heads, the critical ones first, and how many those are.
local function waiting_of(c, record)
  local names, waiting, critical = record.indexes, {}, 0
  local is_waiting = call('SMISMEMBER', key(c, ':waiting'), unpack(names))
  for i = 1, #names do
    if is_waiting[i] == 1 then
      waiting[#waiting + 1] = front.of(c, names[i])
      if 2 * i <= #names then critical = critical + 1 end
    end
  end
  return waiting, critical
end

-- Which of the first indexes, so many, has the lowest key; nil: there are no heads.
local function lowest_of(c, indexes, count)
  local lowest, best = math.huge, nil
  for i = 1, count do
    local index = indexes[i]
    local order_key = index.key or front.key_of(c, index)
    if order_key < lowest then lowest, best = order_key, index end
  end
  return best
end

-- Fill the instance's free capacity with the best parked tasks of all its types; takes at most `limit` out of the
-- park. Returns how many came. What does not fit is not looked at again: it fits no later.
local function pull(c, instance, limit, via)
  local record, f = instance_of(c, instance), free_of(c, instance)
  if not record or not f or f[2] == CLOSED or f[FIRST] <= 0 then return 0 end
  local indexes, critical = waiting_of(c, record)
  local pulled, taken, flag = 0, 0, f[2]
  while f[2] ~= CLOSED and f[FIRST] > 0 and taken < limit do
    if f[2] ~= flag then -- held no more: others fit now
      indexes, critical = waiting_of(c, record)
      flag = f[2]
    end
    -- If nothing but headroom is left only critical tasks fit.
    local count = f[FIRST] <= f[3] and flag ~= HELD and critical or #indexes
    local index = lowest_of(c, indexes, count)
    if not index then break end
    local row = index.rows[index.at]
    local shape = shape_of(c, row.text)
    if fits(c, instance, f, shape) and has_labels(c, instance, shape) then
      local placed, gone = pop(c, instance, f, shape, index, row, via)
      pulled, taken = pulled + placed, taken + gone
    else
      index.at, index.key = index.at + 1, false
    end
  end
  return pulled
end

-- Fill the instance's free capacity with tasks of one shape. Returns how many came.
local function pull_shape(c, instance, shape, limit, via)
  local record, f = instance_of(c, instance), free_of(c, instance)
  if not record or not f or not has_labels(c, instance, shape) then return 0 end
  local serves, pulled, taken = false, 0, 0
  for _, agent_type in ipairs(record.types) do serves = serves or agent_type == shape.type end
  while serves and taken < limit and fits(c, instance, f, shape) do
    local first = call('ZPOPMIN', shape.park)
    if not first[1] then break end
    pulled, taken = pulled + take_first(c, instance, f, shape, first, via), taken + 1
    refresh_head(c, shape)
  end
  return pulled
end

