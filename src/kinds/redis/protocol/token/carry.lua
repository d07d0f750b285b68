-- ARGV, behind those of marker.lua: count of deadlines, their keys and times, the command.
local count = tonumber(ARGV[3])
local first = 4 + 2 * count
local missing = {}
for i = 4, first - 1, 2 do missing[i] = redis.pcall('EXISTS', ARGV[i]) == 0 end
local reply = redis.pcall(unpack(ARGV, first))
local kind = type(reply)
if kind == 'table' and reply.err then
  mark('-', 1)
  return {'error', reply.err}
end
for i = 4, first - 1, 2 do
  if missing[i] then redis.pcall('PEXPIREAT', ARGV[i], ARGV[i + 1]) end
end
local function exact(value)
  if type(value) == 'number' then return value < 2^53 and value > -2^53 end
  if type(value) == 'table' and not value.double then
    for k, v in pairs(value) do
      if not (exact(k) and exact(v)) then return false end
    end
  end
  return true
end
local tag, kept = 'new', '!'
if kind == 'number' and not exact(reply) then
  local name, value = string.upper(ARGV[first]), nil
  if name == 'HINCRBY' then
    value = redis.pcall('HGET', ARGV[first + 1], ARGV[first + 2])
  elseif string.find(' INCR INCRBY DECR DECRBY ', ' ' .. name .. ' ', 1, true) then
    value = redis.pcall('GET', ARGV[first + 1])
  end
  if type(value) == 'string' then
    tag, reply, kept = 'integer', value, ':' .. value
  else
    tag, reply = 'lost', nil
  end
elseif kind == 'number' then
  kept = string.format(':%.0f', reply)
elseif kind == 'string' and #reply <= 4096 then
  kept = '$' .. reply
elseif kind == 'nil' or (reply == false and ARGV[1] ~= '3') then
  kept = '_'
elseif kind == 'table' and reply.ok then
  kept = '+' .. reply.ok
elseif kind == 'table' and not exact(reply) then
  tag, reply = 'lost', nil
end
mark(digest .. kept, 604800000)
return {tag, reply}
