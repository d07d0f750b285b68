-- ARGV, behind those of marker.lua, for each command: count of words, count of deadlines, their keys and times, the words.
local replies, failures, failed, at = {}, 0, nil, 3
-- What the account may not run aborts a transaction as a whole.
while redis.acl_check_cmd and at <= #ARGV do
  local words, count = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local first = at + 2 + 2 * count
  local known, may = pcall(redis.acl_check_cmd, unpack(ARGV, first, first + words - 1))
  if known and not may then
    mark('-', 1)
    return {'error', "NOPERM this user has no permissions to run the '" .. string.lower(ARGV[first]) .. "' command"}
  end
  at = first + words
end
at = 3
while at <= #ARGV do
  local words, count = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local first = at + 2 + 2 * count
  local missing = {}
  for i = at + 2, first - 1, 2 do missing[i] = redis.pcall('EXISTS', ARGV[i]) == 0 end
  local reply = redis.pcall(unpack(ARGV, first, first + words - 1))
  replies[#replies + 1] = reply
  if type(reply) == 'table' and reply.err then
    failures = failures + 1
    failed = failed or {'partly', reply.err, #replies}
  else
    for i = at + 2, first - 1, 2 do
      if missing[i] then redis.pcall('PEXPIREAT', ARGV[i], ARGV[i + 1]) end
    end
  end
  at = first + words
end
if failures == #replies then
  mark('-', 1)
  return {'error', failed[2]}
end
if failed then
  mark(digest .. '~' .. failed[3] .. ' ' .. failed[2], 604800000)
  return failed
end
mark(digest .. '!', 604800000)
return {'new', replies}
