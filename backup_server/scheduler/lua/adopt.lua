-- Count a task that SQL knows as running: after the index was lost, or when it counts against other keys than
-- it was claimed for. Never refused, twice is once. Answers 1 when the claim was not known.
-- ARGV: task, proxy, attempt, keys with tabs between, now_ms
local tid, p, att, keys, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local li = redis.call('HMGET', 'vmhaul:li:' .. tid, 'p', 'att', 'keys')
if li[1] then
  if li[1] ~= p or li[2] ~= att or li[3] == keys then return 0 end
  for key in string.gmatch(li[3], '[^\t]+') do
    if redis.call('HINCRBY', 'vmhaul:use', key, -1) <= 0 then redis.call('HDEL', 'vmhaul:use', key) end
  end
elseif redis.call('EXISTS', 'vmhaul:t:' .. tid) == 1 then
  return 0
end
for key in string.gmatch(keys, '[^\t]+') do redis.call('HINCRBY', 'vmhaul:use', key, 1) end
redis.call('HSET', 'vmhaul:li:' .. tid, 'p', p, 'att', att, 'keys', keys)
if li[1] then return 0 end
redis.call('HSET', 'vmhaul:t:' .. tid, 'bucket', keys, 'att', att)
redis.call('ZADD', 'vmhaul:lease', now, tid)
return 1
