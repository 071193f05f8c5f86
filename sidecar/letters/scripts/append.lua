-- Append entries to a stream if its last id is the one the sender expects.
--
-- KEYS[1]  the stream
-- ARGV[1]  expected last sequence number; 0 for a stream that is not there
-- ARGV[2]  number of entries
-- then per entry: sequence number, number of values, values (field, value, ...)
--
-- Returns {outcome, last sequence number, length, entries written}. A failed
-- script keeps the entries it had written, so every XADD is a pcall and the count
-- written is always told. With no entries it only compares.

local key = KEYS[1]

local function state()
  local info = redis.pcall('XINFO', 'STREAM', key)
  if info.err then
    if redis.call('EXISTS', key) == 0 then
      return '0', 0
    end
    return nil, info.err
  end
  local last, length
  for at = 1, #info - 1, 2 do
    if info[at] == 'last-generated-id' then
      last = string.match(info[at + 1], '^%d+')
    elseif info[at] == 'length' then
      length = info[at + 1]
    end
  end
  return last, length
end

local last, length = state()
if last == nil then
  return {'error: ' .. length, '0', 0, 0}
end
if last ~= ARGV[1] then
  return {'mismatch', last, length, 0}
end

local at = 3
for written = 0, tonumber(ARGV[2]) - 1 do
  local values = tonumber(ARGV[at + 1])
  local reply = redis.pcall(
    'XADD', key, ARGV[at] .. '-0', unpack(ARGV, at + 2, at + 1 + values)
  )
  if type(reply) == 'table' and reply.err then
    return {'error: ' .. reply.err, last, length + written, written}
  end
  last = ARGV[at]
  at = at + 2 + values
end
return {'ok', last, length + tonumber(ARGV[2]), tonumber(ARGV[2])}
