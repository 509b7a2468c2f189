-- End a claim: counters back, task out of the index. Only for the attempt named; twice is once.
-- ARGV: task, attempt
local tid, att = ARGV[1], ARGV[2]
local li = redis.call('HMGET', 'vmhaul:li:' .. tid, 'att', 'keys')
if not li[1] or li[1] ~= att then return 0 end
redis.call('DEL', 'vmhaul:li:' .. tid, 'vmhaul:t:' .. tid)
redis.call('ZREM', 'vmhaul:lease', tid)
for key in string.gmatch(li[2], '[^\t]+') do
  if redis.call('HINCRBY', 'vmhaul:use', key, -1) <= 0 then redis.call('HDEL', 'vmhaul:use', key) end
end
return 1
