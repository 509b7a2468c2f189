-- Give free slots of proxies the best pending tasks that they may take now; one atomic step.
-- ARGV: now_ms, spill_ms (-1: never), rank from which on a mode uses the host's NFC service, first and last rank of
--       HotAdd, most claims of one proxy, most claims in all, proxies ...
-- Answers task, wish key, proxy, rank, attempt, ... for each task claimed.
local now, spill = tonumber(ARGV[1]), tonumber(ARGV[2])
local network, hotadd_first, hotadd_last = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local each, most = tonumber(ARGV[6]), tonumber(ARGV[7])
local BAND, NEW = 1e9, 5e8  -- a score is band * BAND + NEW, unless its VM has begun, + virtual time

-- Limits, read once in this call. Counts only grow in it, so what is full stays full.
local limit, used = {}, {}
local function know(key)
  if used[key] == nil then
    limit[key] = tonumber(redis.call('HGET', 'vmhaul:lim', key) or '0')
    used[key] = tonumber(redis.call('HGET', 'vmhaul:use', key) or '0')
  end
end
local function room(key)
  know(key)
  return limit[key] == 0 or used[key] < limit[key]
end
-- A proxy that is not known, off or closed has no slots, not slots without limit.
local function slot(p)
  local key = 'p:' .. p
  know(key)
  return limit[key] > 0 and used[key] < limit[key]
end

local function attaches(rank) return rank >= hotadd_first and rank <= hotadd_last end
local function attachable(p, rank) return not attaches(rank) or room('a:' .. p) end

-- The keys of a bucket: those that count in every mode, and those of hosts.
local parsed = {}
local function keys_of(bucket)
  local found = parsed[bucket]
  if not found then
    found = {all = {}, hosts = {}}
    for key in string.gmatch(bucket, '[^\t]+') do
      local list = string.sub(key, 1, 2) == 'h:' and found.hosts or found.all
      list[#list + 1] = key
    end
    parsed[bucket] = found
  end
  return found
end
local function fits(bucket, nfc)
  local keys = keys_of(bucket)
  for _, key in ipairs(keys.all) do if not room(key) then return false end end
  if nfc then
    for _, key in ipairs(keys.hosts) do if not room(key) then return false end end
  end
  return true
end

-- Best head of a place whose keys have room, remembered until the place changes or a key is full.
local waits = {}  -- place -> rank -> see must_wait
local best_of = {[true] = {}, [false] = {}}
local filled = 0  -- how many keys became full in this call: as long as none does, what fitted fits
local function best(place, nfc)
  local kept = best_of[nfc][place]
  if kept == false or (kept and kept.filled == filled) then return kept end
  if kept and fits(kept.bucket, nfc) then
    kept.filled = filled
    return kept
  end
  waits[place] = nil
  local from, step = 0, 4
  while true do
    local heads = redis.call('ZRANGE', 'vmhaul:heads:' .. place, from, from + step - 1, 'WITHSCORES')
    for i = 1, #heads, 2 do
      if fits(heads[i], nfc) then
        local score = tonumber(heads[i + 1])
        local band = math.floor(score / BAND)
        local virtual = score - band * BAND
        kept = {place = place, bucket = heads[i], score = score, band = band, virtual = virtual,
          begun = virtual < NEW and 0 or 1, filled = filled}
        best_of[nfc][place] = kept
        return kept
      end
    end
    if #heads < 2 * step then
      best_of[nfc][place] = false
      return false
    end
    from, step = from + step, step * 2
  end
end
local function forget(place)
  best_of[true][place], best_of[false][place] = nil, nil
  waits[place] = nil
end

local function set_head(place, bucket)
  local head = redis.call('ZRANGE', 'vmhaul:pend:' .. place .. '/' .. bucket, 0, 0, 'WITHSCORES')
  if head[1] then redis.call('ZADD', 'vmhaul:heads:' .. place, head[2], bucket)
  else redis.call('ZREM', 'vmhaul:heads:' .. place, bucket) end
  forget(place)
end

-- Is there a proxy with a free slot that reaches this place in a better mode?
local reach = {}
local function better(place, rank)
  for r = 1, rank - 1 do
    local key = 'vmhaul:reach:' .. place .. ':' .. r
    reach[key] = reach[key] or redis.call('SMEMBERS', key)
    for _, other in ipairs(reach[key]) do
      if slot(other) and attachable(other, r) then return true end
    end
  end
  return false
end

-- Must the head of a place wait, as another proxy reaches it in a better mode? One answer for all proxies of a rank: a
-- night's beginning has a thousand places and a hundred proxies that must leave them alone. A slot of a better proxy
-- that is taken meanwhile is seen by the next call.
local function must_wait(c, rank)
  if rank <= 1 then return false end
  local known = waits[c.place]
  if not known then
    known = {}
    waits[c.place] = known
  end
  if known[rank] == nil then
    known[rank] = false
    if better(c.place, rank) then
      local head = redis.call('ZRANGE', 'vmhaul:pend:' .. c.place .. '/' .. c.bucket, 0, 0)[1]
      -- Without one the head is stale, and who takes it sees that.
      known[rank] = head and not (spill >= 0
        and now - tonumber(redis.call('HGET', 'vmhaul:t:' .. head, 'enq') or '0') >= spill)
    end
  end
  return known[rank]
end

-- The other disks of a VM that has begun come before VMs that have not.
local function begin_vm(vm, tid)
  for _, other in ipairs(redis.call('SMEMBERS', 'vmhaul:vm:' .. vm)) do
    if other ~= tid then
      local t = redis.call('HMGET', 'vmhaul:t:' .. other, 'place', 'bucket', 'score')
      if t[1] then
        local score = tonumber(t[3]) - NEW
        redis.call('HSET', 'vmhaul:t:' .. other, 'score', score)
        redis.call('ZADD', 'vmhaul:pend:' .. t[1] .. '/' .. t[2], 'XX', score, other)
        redis.call('ZADD', 'vmhaul:heads:' .. t[1], 'LT', score, t[2])
        forget(t[1])
      end
    end
  end
  redis.call('DEL', 'vmhaul:vm:' .. vm)
end

local out, claimed = {}, 0
local function take(p, c, rank, tid)
  local keys = {'p:' .. p}
  local found = keys_of(c.bucket)
  for _, key in ipairs(found.all) do keys[#keys + 1] = key end
  if rank >= network then for _, key in ipairs(found.hosts) do keys[#keys + 1] = key end end
  if attaches(rank) then keys[#keys + 1] = 'a:' .. p end
  for _, key in ipairs(keys) do
    know(key)
    used[key] = used[key] + 1
    if used[key] == limit[key] then filled = filled + 1 end
    redis.call('HINCRBY', 'vmhaul:use', key, 1)
  end
  redis.call('ZREM', 'vmhaul:pend:' .. c.place .. '/' .. c.bucket, tid)
  local t = redis.call('HMGET', 'vmhaul:t:' .. tid, 'att', 'vm')
  redis.call('HSET', 'vmhaul:li:' .. tid, 'p', p, 'att', t[1], 'keys', table.concat(keys, '\t'))
  redis.call('ZADD', 'vmhaul:lease', now, tid)
  if c.begun == 1 then
    -- Disks of a VM that has begun are early; they do not move the time of the others.
    local virtual = c.virtual - NEW
    if virtual > tonumber(redis.call('HGET', 'vmhaul:vt', c.band) or '0') then
      redis.call('HSET', 'vmhaul:vt', c.band, virtual)
    end
    if t[2] and t[2] ~= '' then begin_vm(t[2], tid) end
  end
  set_head(c.place, c.bucket)
  for _, word in ipairs({tid, c.place, p, tostring(rank), t[1]}) do out[#out + 1] = word end
  claimed = claimed + 1
end

local function before(a, a_rank, b, b_rank)
  if a.band ~= b.band then return a.band < b.band end
  if a.begun ~= b.begun then return a.begun < b.begun end
  if a_rank ~= b_rank then return a_rank < b_rank end
  if a.score ~= b.score then return a.score < b.score end
  return a.place < b.place
end

-- One task for one proxy; false when there is none that it may take now.
local ranks_of = {}
local function serve(p)
  local ranks = ranks_of[p]
  if not ranks then
    ranks = {}
    local flat = redis.call('HGETALL', 'vmhaul:elig:' .. p)
    for i = 1, #flat, 2 do ranks[flat[i]] = tonumber(flat[i + 1]) end
    ranks_of[p] = ranks
  end
  while true do
    local found, found_rank
    for place, rank in pairs(ranks) do
      if not attaches(rank) or attachable(p, rank) then
        local nfc = rank >= network
        local c = best_of[nfc][place]
        if c == nil or (c and c.filled ~= filled) then c = best(place, nfc) end
        if not c then
          ranks[place] = nil  -- nothing comes into a place in this call
        elseif (not found or before(c, rank, found, found_rank)) and not must_wait(c, rank) then
          found, found_rank = c, rank
        end
      end
    end
    if not found then return false end
    local tid = redis.call('ZRANGE', 'vmhaul:pend:' .. found.place .. '/' .. found.bucket, 0, 0)[1]
    if tid then
      take(p, found, found_rank, tid)
      return true
    end
    set_head(found.place, found.bucket)  -- a stale head heals itself
  end
end

-- Least busy first, one task for each in turn: so tasks spread.
local turns = {}
for i = 8, #ARGV do
  local p = ARGV[i]
  if slot(p) then turns[#turns + 1] = {p = p, order = i, taken = 0} end
end
local function emptier(a, b)
  local x, y = used['p:' .. a.p] / limit['p:' .. a.p], used['p:' .. b.p] / limit['p:' .. b.p]
  if x ~= y then return x < y end
  return a.order < b.order
end
while #turns > 0 and claimed < most do
  table.sort(turns, emptier)
  local again = {}
  for _, turn in ipairs(turns) do
    if claimed >= most then break end
    if serve(turn.p) then
      turn.taken = turn.taken + 1
      if turn.taken < each and slot(turn.p) then again[#again + 1] = turn end
    end
  end
  turns = again
end
return out
