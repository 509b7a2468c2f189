-- End a claim: counters back, task out of the index. Only for the attempt named; twice is once.
-- ARGV: task, attempt
local tid, att = ARGV[1], ARGV[2]
local li = redis.call('HMGET', 'vmhaul:li:' .. tid, 'p', 'att', 'ds', 'repo')
if not li[1] or li[2] ~= att then return 0 end
redis.call('DEL', 'vmhaul:li:' .. tid, 'vmhaul:t:' .. tid)
redis.call('ZREM', 'vmhaul:lease', tid)
redis.call('HINCRBY', 'vmhaul:px:' .. li[1], 'used', -1)
redis.call('HINCRBY', 'vmhaul:use', 'd:' .. li[3], -1)
redis.call('HINCRBY', 'vmhaul:use', 'r:' .. li[4], -1)
return 1
