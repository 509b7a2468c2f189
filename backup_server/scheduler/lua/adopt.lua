-- Count a task that SQL knows as running, after the index was lost. Twice is once.
-- ARGV: task, proxy, attempt, repository, host whose NFC service it uses ('': none), now_ms
local tid, p, att, repo, host, now = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if redis.call('EXISTS', 'vmhaul:t:' .. tid) == 1 then return 0 end
redis.call('HSET', 'vmhaul:t:' .. tid, 'bucket', repo .. ' ' .. host, 'att', att)
redis.call('HSET', 'vmhaul:li:' .. tid, 'p', p, 'att', att, 'repo', repo, 'host', host)
redis.call('ZADD', 'vmhaul:lease', now, tid)
redis.call('HINCRBY', 'vmhaul:px:' .. p, 'used', 1)
redis.call('HINCRBY', 'vmhaul:use', 'r:' .. repo, 1)
if host ~= '' then redis.call('HINCRBY', 'vmhaul:use', 'h:' .. host, 1) end
return 1
