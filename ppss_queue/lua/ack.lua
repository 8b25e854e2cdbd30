-- Records that attempts succeeded.
-- Returns the members whose lease had been lost (a repeated ack of the same token is no loss).
-- ARGV: run, worker, then for each item: member, outcome (JSON), seconds, kept output (RQ's form) or ''
go_on_when_full()
local run, worker = ARGV[1], ARGV[2]
local lost, seconds, done, now = {}, 0, 0, iso(NOW)
for index = 3, #ARGV, 4 do
  local member = ARGV[index]
  local job, token = split_member(member)
  if end_lease(run, member) then
    redis.call('ZADD', registry('finished', run), NOW + CENTURY, job)
    local took = tonumber(ARGV[index + 2])
    redis.call('HSET', job_key(job), 'status', 'finished', 'outcome', ARGV[index + 1], 'ended_at', now,
      'token', token, 'worker_name', worker, 'started_at', iso(NOW - took))
    drop_output(run, job) -- of a failure before it was requeued from a dashboard
    local kept = ARGV[index + 3]
    if kept ~= '' and redis.call('HINCRBY', run_key(run), 'kept_bytes', #kept) <= OUTPUT_BUDGET then
      redis.call('HSET', job_key(job), 'output', kept)
    end
    event(run, job, 'succeeded', redis.call('HGET', job_key(job), 'attempts') or 0)
    seconds, done = seconds + took, done + 1
  else
    local last = redis.call('HMGET', job_key(job), 'token', 'status')
    if last[1] ~= token or last[2] ~= 'finished' then lost[#lost + 1] = member end
  end
end
if done > 0 then
  redis.call('HINCRBYFLOAT', run_key(run), 'work_seconds', seconds)
  if redis.call('EXISTS', R .. 'worker:' .. worker) == 1 then
    redis.call('HINCRBY', R .. 'worker:' .. worker, 'successful_job_count', done)
    redis.call('HINCRBYFLOAT', R .. 'worker:' .. worker, 'total_working_time', seconds)
  end
end
worker_idle(worker)
settle(run)
return lost
