-- Records that attempts succeeded.
-- Returns the members whose lease had been lost (a repeated ack of the same token is no loss).
-- ARGV: run, worker, then for each item: member, outcome (JSON), seconds, kept output (RQ's form) or ''
go_on_when_full()
local run, worker = ARGV[1], ARGV[2]
local wip, finished = registry('wip', run), registry('finished', run)
local lost, seconds, done, now = {}, 0, 0, iso(NOW)
local judged = redis.call('EXISTS', doubts_key(run), record_key(run)) > 0

-- Called for each item there is, so with as few calls of its own as can be.
local function ack(index, score)
  local member = ARGV[index]
  local job, token = split_member(member)
  local key = job_key(job)
  local values = redis.call('HMGET', key, 'status', 'attempts', 'outcome', 'token')
  local status, attempts, before = values[1], tonumber(values[2] or 0), values[3]
  if not score or (status ~= 'queued' and status ~= 'started') then
    drop_execution(member)
    if values[4] ~= token or status ~= 'finished' then lost[#lost + 1] = member end
    return nil
  end
  if status == 'started' then
    drop_execution(member)
  elseif tonumber(score) >= BEGUN then -- it ended before `start`
    attempts = attempts + 1
  end
  local took = tonumber(ARGV[index + 2])
  redis.call('HSET', key, 'status', 'finished', 'outcome', ARGV[index + 1], 'attempts', attempts, 'token', token,
    'worker_name', worker, 'started_at', iso(NOW - took), 'ended_at', now)
  if judged then settle_doubt(run, job, node_of(worker), true, before) end
  if before then drop_output(run, job) end -- of a failure before it was requeued from a dashboard
  local kept = ARGV[index + 3]
  if kept ~= '' and redis.call('HINCRBY', run_key(run), 'kept_bytes', #kept) <= OUTPUT_BUDGET then
    redis.call('HSET', key, 'output', kept)
  end
  event(run, job, 'succeeded', attempts)
  seconds, done = seconds + took, done + 1
  return job
end

for first = 3, #ARGV, 4000 do
  local members, ended = {}, {}
  for index = first, math.min(first + 3996, #ARGV), 4 do members[#members + 1] = ARGV[index] end
  local scores = redis.call('ZMSCORE', wip, unpack(members))
  redis.call('ZREM', wip, unpack(members))
  for at = 1, #members do
    local job = ack(first + 4 * (at - 1), scores[at])
    if job then
      ended[#ended + 1] = NOW + CENTURY
      ended[#ended + 1] = job
    end
  end
  if #ended > 0 then redis.call('ZADD', finished, unpack(ended)) end
end
if done > 0 then
  if judged then redis.call('HDEL', record_key(run), node_of(worker) .. '!') end
  redis.call('HINCRBYFLOAT', run_key(run), 'work_seconds', seconds)
  if redis.call('EXISTS', R .. 'worker:' .. worker) == 1 then
    redis.call('HINCRBY', R .. 'worker:' .. worker, 'successful_job_count', done)
    redis.call('HINCRBYFLOAT', R .. 'worker:' .. worker, 'total_working_time', seconds)
  end
end
worker_idle(worker)
settle(run)
return lost
