-- Records that attempts did not work: the item waits for its next attempt, or has failed.
-- A halt rule of the run pauses it.
-- Returns the members whose lease had been lost (a repeated fail of the same token is no loss).
-- ARGV: run, worker, then for each item: member, outcome (JSON), seconds, retry delay in seconds or '' (never),
--       output (RQ's form) or ''
go_on_when_full()
local run, worker = ARGV[1], ARGV[2]
local retries = tonumber(redis.call('HGET', run_key(run), 'retries'))
local lost, seconds, failed = {}, 0, 0
local doubts = redis.call('EXISTS', doubts_key(run)) == 1
for index = 3, #ARGV, 5 do
  local member, delay = ARGV[index], ARGV[index + 3]
  local job, token = split_member(member)
  if end_lease(run, member) then
    redis.call('HSET', job_key(job), 'token', token, 'worker_name', worker)
    if doubts then settle_doubt(run, job, node_of(worker), false) end
    local failures = redis.call('HINCRBY', job_key(job), 'failures', 1)
    seconds = seconds + tonumber(ARGV[index + 2])
    if delay ~= '' and failures <= retries then
      redis.call('ZADD', registry('scheduled', run), NOW + tonumber(delay), job)
      redis.call('HSET', job_key(job), 'status', 'scheduled', 'outcome', ARGV[index + 1])
    else
      fail_item(run, job, ARGV[index + 1], ARGV[index + 4])
      failed = failed + 1
    end
  else
    local last = redis.call('HMGET', job_key(job), 'token', 'status')
    if last[1] ~= token or (last[2] ~= 'failed' and last[2] ~= 'scheduled') then lost[#lost + 1] = member end
  end
end
if seconds > 0 then redis.call('HINCRBYFLOAT', run_key(run), 'work_seconds', seconds) end
if failed > 0 and redis.call('EXISTS', R .. 'worker:' .. worker) == 1 then
  redis.call('HINCRBY', R .. 'worker:' .. worker, 'failed_job_count', failed)
end
worker_idle(worker)
settle(run)
if failed > 0 then check_halt(run) end
return lost
