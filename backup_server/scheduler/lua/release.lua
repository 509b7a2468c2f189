-- End a claim: counters back, task out of the index. Only for the attempt named; twice is once.
-- ARGV: task, attempt
local tid, att = ARGV[1], ARGV[2]
local li = redis.call('HMGET', 'vmhaul:li:' .. tid, 'p', 'att', 'repo', 'host')
if not li[1] or li[2] ~= att then return 0 end
redis.call('DEL', 'vmhaul:li:' .. tid, 'vmhaul:t:' .. tid)
redis.call('ZREM', 'vmhaul:lease', tid)
redis.call('HINCRBY', 'vmhaul:px:' .. li[1], 'used', -1)
redis.call('HINCRBY', 'vmhaul:use', 'r:' .. li[3], -1)
if li[4] ~= '' then redis.call('HINCRBY', 'vmhaul:use', 'h:' .. li[4], -1) end
return 1
