-- Give free slots of one proxy the best pending tasks that it may take now; one atomic step.
-- ARGV: proxy, want, now_ms, spill_ms (-1: never), rank from which on a mode uses the host's NFC service
-- Answers task, wish key, rank, attempt, ... for each task claimed.
local p, want, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local spill, network = tonumber(ARGV[4]), tonumber(ARGV[5])
local px = 'vmhaul:px:' .. p
local st = redis.call('HMGET', px, 'st', 'max', 'used')
if st[1] ~= 'on' then return {} end
local free = tonumber(st[2]) - tonumber(st[3] or '0')
if want < free then free = want end
if free <= 0 then return {} end

-- limits of hosts and repositories, read once in this call
local most, used = {}, {}
local function room(key)
  if used[key] == nil then
    local limit = tonumber(redis.call('HGET', 'vmhaul:lim', key) or '0')
    most[key] = limit > 0 and limit or 1e9
    used[key] = tonumber(redis.call('HGET', 'vmhaul:use', key) or '0')
  end
  return used[key] < most[key]
end

-- is there a proxy with a free slot that reaches this wish in a better mode?
local known = {}
local function better(place, rank)
  local key = place .. ':' .. rank
  if known[key] ~= nil then return known[key] end
  for r = 1, rank - 1 do
    for _, other in ipairs(redis.call('SMEMBERS', 'vmhaul:reach:' .. place .. ':' .. r)) do
      if other ~= p then
        local s = redis.call('HMGET', 'vmhaul:px:' .. other, 'st', 'max', 'used')
        if s[1] == 'on' and tonumber(s[3] or '0') < tonumber(s[2]) then
          known[key] = true
          return true
        end
      end
    end
  end
  known[key] = false
  return false
end

-- the limits that a task of this bucket counts in, claimed with that rank
local function limits(bucket, rank)
  local gap = string.find(bucket, ' ', 1, true)
  local repo, host = string.sub(bucket, 1, gap - 1), string.sub(bucket, gap + 1)
  if host == '' or rank < network then return {'r:' .. repo}, repo, '' end
  return {'r:' .. repo, 'h:' .. host}, repo, host
end

local function fits(bucket, rank)
  for _, key in ipairs((limits(bucket, rank))) do
    if not room(key) then return false end
  end
  return true
end

-- best head of one wish whose repository and host have room
local function best(place, rank)
  local from = 0
  while true do
    local heads = redis.call('ZRANGE', 'vmhaul:heads:' .. place, from, from + 3, 'WITHSCORES')
    if #heads == 0 then return nil end
    for i = 1, #heads, 2 do
      if fits(heads[i], rank) then
        local score = tonumber(heads[i + 1])
        return {band = math.floor(score / 1e9), rank = rank, score = score, place = place,
          bucket = heads[i]}
      end
    end
    from = from + 4
  end
end

local cand = {}
local elig = redis.call('HGETALL', 'vmhaul:elig:' .. p)
for i = 1, #elig, 2 do
  local c = best(elig[i], tonumber(elig[i + 1]))
  if c then cand[#cand + 1] = c end
end

local function before(a, b)
  if a.band ~= b.band then return a.band < b.band end
  if a.rank ~= b.rank then return a.rank < b.rank end
  if a.score ~= b.score then return a.score < b.score end
  return a.place < b.place
end

local out = {}
while free > 0 and #cand > 0 do
  local bi = 1
  for i = 2, #cand do if before(cand[i], cand[bi]) then bi = i end end
  local c = cand[bi]
  local pend = 'vmhaul:pend:' .. c.place .. '/' .. c.bucket
  local first = redis.call('ZRANGE', pend, 0, 0, 'WITHSCORES')
  local tid = first[1]
  local take, stale = true, false
  if not tid then
    redis.call('ZREM', 'vmhaul:heads:' .. c.place, c.bucket)  -- a stale head heals itself
    take, stale = false, true
  elseif c.rank > 1 and better(c.place, c.rank) then
    local waited = now - tonumber(redis.call('HGET', 'vmhaul:t:' .. tid, 'enq') or '0')
    take = spill >= 0 and waited >= spill
  end
  table.remove(cand, bi)
  if take then
    redis.call('ZREM', pend, tid)
    local keys, repo, host = limits(c.bucket, c.rank)
    for _, key in ipairs(keys) do
      redis.call('HINCRBY', 'vmhaul:use', key, 1)
      used[key] = used[key] + 1
    end
    redis.call('HINCRBY', px, 'used', 1)
    local att = redis.call('HGET', 'vmhaul:t:' .. tid, 'att')
    redis.call('HSET', 'vmhaul:li:' .. tid, 'p', p, 'att', att, 'repo', repo, 'host', host)
    redis.call('ZADD', 'vmhaul:lease', now, tid)
    local score = tonumber(first[2])
    local band = math.floor(score / 1e9)
    local virtual = score - band * 1e9
    if virtual > tonumber(redis.call('HGET', 'vmhaul:vt', band) or '0') then
      redis.call('HSET', 'vmhaul:vt', band, virtual)
    end
    out[#out + 1] = tid
    out[#out + 1] = c.place
    out[#out + 1] = tostring(c.rank)
    out[#out + 1] = att
    free = free - 1
  end
  if take or stale then
    local head = redis.call('ZRANGE', pend, 0, 0, 'WITHSCORES')
    if head[1] then redis.call('ZADD', 'vmhaul:heads:' .. c.place, head[2], c.bucket)
    else redis.call('ZREM', 'vmhaul:heads:' .. c.place, c.bucket) end
    local again = best(c.place, c.rank)
    if again then cand[#cand + 1] = again end
    -- what was taken may have filled a host or a repository that other candidates stand on
    for i = #cand, 1, -1 do
      local o = cand[i]
      if not fits(o.bucket, o.rank) then
        local other = best(o.place, o.rank)
        if other then cand[i] = other else table.remove(cand, i) end
      end
    end
  end
end
return out
