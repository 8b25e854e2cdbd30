-- Leases up to `want` items of the open runs to a worker; expired leases and due retries come first.
-- Returns {seconds until something may be claimable or '', open runs or -1 (RQ is suspended),
--          a run newer than this worker or '', {run, what an item needs, ...} of runs for which there is no room,
--          1 if other nodes are there or 0, batch...}
-- where a batch is {run, token, visibility, job, description, item, root, attempts, failures, doubted on, job, ...};
-- doubted on: the node on which it failed, so that another one is to try it, or ''.
-- ARGV: our schema version, run version, nonce, worker, want, idle slots, 1 if the worker has a command for
--       runs without one or 0, GPUs, CPUs and bytes of memory that are free on each of its hosts (one list), run for
--       whose next item those of the first are kept or '', the node on which all of it will run or '' (there are
--       several), allowed run or -excluded run... (no allowed one: all)
--       What would run on one node, which is paused, is not given, and no time is told: its worker hears of a change by
--       itself.
local refused = check_schema(ARGV[1])
if refused then return refused end
local version, worker, want, idle = tonumber(ARGV[2]), ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('EXISTS', R .. 'suspended') == 1 then
  local left = redis.call('PTTL', R .. 'suspended')
  return { left > 0 and tostring(left / 1000) or '', -1, '', {}, 0 }
end
if ARGV[10] ~= '' and redis.call('HEXISTS', node_key(ARGV[10]), 'paused') == 1 then want = 0 end
local allowed, excluded = {}, {}
for index = 11, #ARGV do
  local run = string.match(ARGV[index], '^-(.*)')
  if run then excluded[run] = true else allowed[ARGV[index]] = true end
end

-- RQ's form of 'failed on its node, and no other node was left to try it'
local UNTRIED = 'eJxLS8zMSU1RyM9TyCwpVsjLT0nVUUjMSwGyFPJLMlKLwEIK5YnFCjmpaSUKJfkKJUWVQLUAMzAT0g=='

-- Leases of workers that died. A stock `rq worker` that took items writes the deadline itself as the score.
local function expired_members(wip, limit)
  local members = {}
  for _, offset in ipairs({ BEGUN, CENTURY, 0 }) do
    local from = offset == 0 and '-inf' or offset
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', wip, from, NOW + offset, 'LIMIT', 0, limit - #members)) do
      members[#members + 1] = member
    end
  end
  return members
end

-- Whether the claimer itself runs this: it was frozen or cut off, but whoever claims is alive.
local function runs_here(run, member)
  if string.sub(member, -#ARGV[3] - 1) ~= '-' .. ARGV[3] then return false end
  return tonumber(redis.call('ZSCORE', registry('wip', run), member)) >= BEGUN
end

-- At most `limit` items whose leases expired.
local function reap(run, limit, max_lost, visibility)
  local jobs = {}
  for _, member in ipairs(expired_members(registry('wip', run), limit)) do
    if runs_here(run, member) then
      redis.call('ZADD', registry('wip', run), NOW + BEGUN + visibility, member)
    elseif take_back(run, member, max_lost) then
      jobs[#jobs + 1] = split_member(member)
    end
  end
  return jobs
end

local function take_due(run, limit, jobs)
  local scheduled = registry('scheduled', run)
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', scheduled, '-inf', NOW, 'LIMIT', 0, limit)) do
    redis.call('ZREM', scheduled, job)
    if is_ours(run, job) and redis.call('EXISTS', job_key(job)) == 1 then jobs[#jobs + 1] = job end
  end
end

-- No more than a fair share of what is ready, so that the tail is not hoarded; but fill the idle slots.
local function fair_share(run, limit)
  local key = R .. 'workers:' .. run
  local known = redis.call('SISMEMBER', key, R .. 'worker:' .. worker)
  local workers = redis.call('SCARD', key) + 1 - known
  local share = math.ceil(redis.call('LLEN', queue_key(run)) / (2 * workers))
  return math.min(limit, math.max(share, idle))
end

-- Nobody else tries it: it has failed as it did here.
local function believe(run, job, delay)
  if redis.call('LREM', queue_key(run), 1, job) == 0 then return end -- somebody has it just now
  redis.call('HDEL', doubts_key(run), job)
  redis.call('HSET', job_key(job), 'guilty', 1)
  local failures = redis.call('HINCRBY', job_key(job), 'failures', 1)
  if delay ~= '-' and failures <= tonumber(redis.call('HGET', run_key(run), 'retries')) then
    redis.call('ZADD', registry('scheduled', run), NOW + tonumber(delay), job)
    redis.call('HSET', job_key(job), 'status', 'scheduled')
    return
  end
  local outcome = redis.call('HGET', job_key(job), 'outcome')
  local reason = how_failed(outcome) .. ', and no other node was left to try it'
  fail_item(run, job, '{"reason":"' .. reason .. '",' .. string.sub(outcome, 2), UNTRIED)
  check_halt(run)
end

-- Items of the run that failed where all of it will run, and wait for another node to try them; how many these are;
-- the nodes on which items failed, by item.
local function doubts_of(run)
  local here, count, failed_on, alone = {}, 0, {}, nil
  local doubts = redis.call('HGETALL', doubts_key(run))
  for index = 1, #doubts, 2 do
    local job, patience, delay, first = doubts[index], parse_doubt(doubts[index + 1])
    failed_on[job] = first
    if first == ARGV[10] then
      if alone == nil then alone = not other_node(run, first) end
      local status = redis.call('HGET', job_key(job), 'status')
      if status == 'queued' and (alone or (tonumber(patience) or NOW) < NOW) then
        believe(run, job, delay)
      elseif status ~= 'queued' and status ~= 'started' then -- deleted from a dashboard
        redis.call('HDEL', doubts_key(run), job)
      else
        here[job], count = true, count + 1
      end
    end
  end
  return here, count, failed_on
end

-- Up to `limit` ready items, but those in `doubts`, which stay where they are.
local function pop(run, limit, doubts, count)
  if count == 0 then return redis.call('LPOP', queue_key(run), limit) or {} end
  local popped, left = {}, {}
  for _, job in ipairs(redis.call('LRANGE', queue_key(run), 0, limit + count - 1)) do
    local into = (doubts[job] or #popped == limit) and left or popped
    into[#into + 1] = job
  end
  if #popped > 0 then -- else nothing is written: who listens for changes would be woken in vain, this worker too
    redis.call('LPOP', queue_key(run), #popped + #left)
    for index = #left, 1, -1 do redis.call('LPUSH', queue_key(run), left[index]) end
  end
  return popped
end

local function take(run, limit, max_lost, visibility, doubts, count)
  local jobs = {}
  for _, job in ipairs(reap(run, limit, max_lost, visibility)) do
    if doubts[job] then
      put_first(run, job)
    else
      jobs[#jobs + 1] = job
    end
  end
  if redis.call('HGET', run_key(run), 'state') ~= 'open' then -- halted by those that were lost too often
    for index = #jobs, 1, -1 do put_first(run, jobs[index]) end
    return {}
  end
  if #jobs < limit then take_due(run, limit - #jobs, jobs) end
  for _, job in ipairs(jobs) do redis.call('HSET', job_key(job), 'status', 'queued') end
  limit = fair_share(run, limit)
  if #jobs < limit then
    for _, job in ipairs(pop(run, limit - #jobs, doubts, count)) do
      if is_ours(run, job) then jobs[#jobs + 1] = job end
    end
  end
  return jobs
end

local function lease(run, jobs, visibility, failed_on)
  local token = string.format('%d-%s', redis.call('INCR', P .. 'tokens'), ARGV[3])
  local batch, leases = { run, token, visibility }, {}
  for _, job in ipairs(jobs) do
    local values = redis.call('HMGET', job_key(job), 'description', 'item', 'root', 'attempts', 'failures')
    if values[1] then
      leases[#leases + 1] = NOW + CENTURY + tonumber(visibility)
      leases[#leases + 1] = job .. ':' .. token
      batch[#batch + 1] = job
      for index = 1, 5 do batch[#batch + 1] = values[index] or '' end
      batch[#batch + 1] = failed_on[job] or ''
    end
  end
  for first = 1, #leases, 1000 do
    redis.call('ZADD', registry('wip', run), unpack(leases, first, math.min(first + 999, #leases)))
  end
  return batch, #leases / 2
end

-- {GPUs, CPUs, bytes of memory} of each host, or of an item.
local function amounts(text)
  local found = {}
  for gpus, cpus, bytes in string.gmatch(text, '(%-?%d+) (%-?%d+) (%-?%d+)') do
    found[#found + 1] = { tonumber(gpus), tonumber(cpus), tonumber(bytes) }
  end
  return found
end

local rooms, kept_for = amounts(ARGV[8]), ARGV[9]
local kept = kept_for ~= '' and amounts(redis.call('HGET', run_key(kept_for), 'needs') or '')[1]

-- For how many items of a run there is room on a host.
local function room_on(host, run, needs)
  local most = math.huge
  for kind, need in ipairs(needs) do
    local there = rooms[host][kind] - (kept and host == 1 and run ~= kept_for and kept[kind] or 0)
    if need > 0 then most = math.min(most, math.max(math.floor(there / need), 0)) end
  end
  return most
end

local function room_for(run, needs)
  local most = 0
  for host in ipairs(rooms) do most = most + room_on(host, run, needs) end
  return most
end

local function take_room(run, needs, items)
  for host, room in ipairs(rooms) do
    local here = math.min(items, room_on(host, run, needs))
    items = items - here
    for kind, need in ipairs(needs) do room[kind] = room[kind] - here * need end
  end
end

-- Whether the run has anything to hand out now.
local function has_items(run)
  return redis.call('LLEN', queue_key(run)) > 0 or redis.call('ZCOUNT', registry('scheduled', run), '-inf', NOW) > 0
    or #expired_members(registry('wip', run), 1) > 0
end

local others = redis.call('ZCOUNT', P .. 'nodes', NOW - 30, '+inf') > 1
local reply, wake, open, empty = { '', 0, '', {}, others and 1 or 0 }, nil, 0, {}
local passes = redis.call('ZRANGE', P .. 'open', 0, -1, 'WITHSCORES')
for index = 1, #passes, 2 do
  local run, pass, batches = passes[index], passes[index + 1], #reply
  if (not next(allowed) or allowed[run]) and not excluded[run] then
    local values = redis.call('HMGET', run_key(run), 'version', 'visibility', 'weight', 'max_lost', 'bare',
      'needs')
    local can_run = values[5] ~= '1' or ARGV[7] == '1'
    if not tonumber(values[1]) or tonumber(values[1]) > version then
      reply[3] = run
    elseif can_run then
      open = open + 1
    end
    local needs = values[6] and amounts(values[6])[1]
    local most = needs and math.min(want, room_for(run, needs)) or want
    local doubts, count, failed_on = {}, 0, {}
    if can_run and most > 0 then doubts, count, failed_on = doubts_of(run) end
    if can_run and reply[3] ~= run and want > 0 and count < DOUBTS_MAX then
      local jobs = most > 0 and take(run, most, tonumber(values[4]), tonumber(values[2]), doubts, count) or {}
      if #jobs > 0 then
        local batch, taken = lease(run, jobs, values[2], failed_on)
        if taken > 0 then
          local alone = redis.call('SCARD', R .. 'workers:' .. run) == 0
          redis.call(alone and 'HSET' or 'HSETNX', run_key(run), 'since', NOW) -- where its rate is counted from
          redis.call('SADD', R .. 'workers:' .. run, R .. 'worker:' .. worker)
          redis.call('ZADD', P .. 'open', 'XX', 'INCR', taken / tonumber(values[3]), run)
          -- A run that had nothing to hand out saves up no claims, or it would shut out the others later.
          for _, other in ipairs(empty) do redis.call('ZADD', P .. 'open', 'XX', 'GT', pass, other) end
          want, idle = want - taken, math.max(idle - taken, 0)
          if needs then take_room(run, needs, taken) end
          reply[#reply + 1] = batch
        end
      end
      settle(run)
      -- What is due already waits for room, not for a moment.
      local names = needs and #jobs == most and {} or { [BEGUN] = 'wip', [CENTURY] = 'wip', [0] = 'scheduled' }
      for offset, name in pairs(names) do
        local first = redis.call('ZRANGEBYSCORE', registry(name, run), offset, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
        local due = first and tonumber(first) - offset
        if due and (not wake or due < wake) then wake = due end
      end
    end
    if needs and can_run and reply[3] ~= run and room_for(run, needs) == 0 and has_items(run) then
      reply[4][#reply[4] + 1] = run
      reply[4][#reply[4] + 1] = values[6]
    end
    if #reply == batches then empty[#empty + 1] = run end -- nothing, or nothing for this worker
  end
end
-- A run that someone paused is waited for by the workers that serve only it; one that a halt rule paused is not.
for run in pairs(allowed) do
  local values = redis.call('HMGET', run_key(run), 'state', 'reason')
  if values[1] == 'paused' and not values[2] and not excluded[run] then open = open + 1 end
end
if wake then reply[1] = tostring(math.max(wake - NOW, 0)) end
reply[2] = open
return reply
