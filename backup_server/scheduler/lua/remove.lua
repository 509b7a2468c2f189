-- Take a task that is still pending out of the index; 0 when it is claimed or unknown.
-- ARGV: task
local tid = ARGV[1]
if redis.call('EXISTS', 'vmhaul:li:' .. tid) == 1 then return 0 end
local t = redis.call('HMGET', 'vmhaul:t:' .. tid, 'place', 'bucket', 'vm')
if not t[1] then return 0 end
local pend = 'vmhaul:pend:' .. t[1] .. '/' .. t[2]
redis.call('ZREM', pend, tid)
redis.call('DEL', 'vmhaul:t:' .. tid)
if t[3] ~= '' then redis.call('SREM', 'vmhaul:vm:' .. t[3], tid) end
local head = redis.call('ZRANGE', pend, 0, 0, 'WITHSCORES')
if head[1] then redis.call('ZADD', 'vmhaul:heads:' .. t[1], head[2], t[2])
else redis.call('ZREM', 'vmhaul:heads:' .. t[1], t[2]) end
return 1
