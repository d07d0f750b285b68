-- ARGV: protocol, digest (empty: no marker), and what the script that follows takes.
local digest = ARGV[2]
if ARGV[1] == '3' then redis.setresp(3) end
local function mark(text, life)
  if digest == '' then return {} end
  return redis.pcall('SET', KEYS[1], text, 'PX', life)
end
if digest ~= '' then
  local found = redis.pcall('GET', KEYS[1])
  if type(found) == 'table' then return {'marker', found.err} end
  if found and found ~= '-' then return {'old', found} end
  local set = mark(digest .. '?', 604800000)
  if set.err then return {'marker', set.err} end
end
