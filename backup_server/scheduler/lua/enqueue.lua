-- Put a pending task into the index. Doing it twice is the same as once.
-- ARGV: task, wish key, bucket (its keys, with tabs between), band, job, attempt it will have, now_ms,
--       VM ('': none), 1 when another disk of the VM has begun
local tid, place, bucket = ARGV[1], ARGV[2], ARGV[3]
local band, job, att, now = tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local vm, begun = ARGV[8], ARGV[9] == '1'
local t = 'vmhaul:t:' .. tid
if redis.call('EXISTS', t) == 1 then return 0 end
-- Fairness: each task of a job is one step later in virtual time; a job that comes later starts at the
-- present virtual time of its band, so it alternates with older jobs instead of waiting for their end.
local present = tonumber(redis.call('HGET', 'vmhaul:vt', band) or '0')
local own = tonumber(redis.call('HGET', 'vmhaul:vj', job) or '0')
if own < present then own = present end
redis.call('HSET', 'vmhaul:vj', job, own + 1)
local score = band * 1e9 + own
if not begun then
  score = score + 5e8
  if vm ~= '' then redis.call('SADD', 'vmhaul:vm:' .. vm, tid) end
end
redis.call('HSET', t, 'place', place, 'bucket', bucket, 'score', score, 'att', att, 'enq', now, 'vm', vm)
redis.call('ZADD', 'vmhaul:pend:' .. place .. '/' .. bucket, score, tid)
redis.call('ZADD', 'vmhaul:heads:' .. place, 'LT', score, bucket)
return 1
