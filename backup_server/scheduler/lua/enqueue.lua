-- Put a pending task into the index. Doing it twice is the same as once.
-- ARGV: task, wish key, repository, host, band, job, attempt it will have, now_ms
local tid, place, bucket = ARGV[1], ARGV[2], ARGV[3] .. ' ' .. ARGV[4]
local band, job, att, now = tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8]
local t = 'vmhaul:t:' .. tid
if redis.call('EXISTS', t) == 1 then return 0 end
-- Fairness: each task of a job is one step later in virtual time; a job that comes later starts at the
-- present virtual time of its band, so it alternates with older jobs instead of waiting for their end.
local present = tonumber(redis.call('HGET', 'vmhaul:vt', band) or '0')
local own = tonumber(redis.call('HGET', 'vmhaul:vj', job) or '0')
if own < present then own = present end
redis.call('HSET', 'vmhaul:vj', job, own + 1)
local score = band * 1e9 + own
redis.call('HSET', t, 'place', place, 'bucket', bucket, 'score', score, 'att', att, 'enq', now)
redis.call('ZADD', 'vmhaul:pend:' .. place .. '/' .. bucket, score, tid)
redis.call('ZADD', 'vmhaul:heads:' .. place, 'LT', score, bucket)
return 1
