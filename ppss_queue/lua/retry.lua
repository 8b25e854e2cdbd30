-- Puts failed items back to ready, with their failures and lost leases forgotten; a done run is open again.
-- Call it until it finds 0, passing the cutoff back, so that what fails again meanwhile is left alone.
-- Returns {how many were moved, cutoff, how many were found}, or 'unknown' or 'cancelled'.
-- ARGV: run, chunk, cutoff or '', job... (none: all failed items)
go_on_when_full()
local run, chunk, cutoff = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local state = redis.call('HGET', run_key(run), 'state')
if not state then return 'unknown' end
if state == 'cancelled' or state == 'filling' then return state end
local failed, jobs = registry('failed', run), {}
if cutoff == '' then -- the newest of them, should the clock of the server have gone back
  local newest = tonumber(redis.call('ZREVRANGE', failed, 0, 0, 'WITHSCORES')[2] or 0)
  cutoff = string.format('%.17g', math.max(NOW + CENTURY, newest))
end
if #ARGV > 3 then
  for index = 4, #ARGV do
    if redis.call('ZREM', failed, ARGV[index]) == 1 then jobs[#jobs + 1] = ARGV[index] end
  end
else
  jobs = redis.call('ZRANGEBYSCORE', failed, '-inf', cutoff, 'LIMIT', 0, chunk)
  if #jobs > 0 then redis.call('ZREM', failed, unpack(jobs)) end
end
local moved = 0
for _, job in ipairs(jobs) do
  if redis.call('EXISTS', job_key(job)) == 1 then
    redis.call('HSET', job_key(job), 'status', 'queued')
    redis.call('HDEL', job_key(job), 'failures', 'lost', 'guilty', 'ended_at', 'token')
    drop_output(run, job)
    redis.call('RPUSH', queue_key(run), job)
    moved = moved + 1
  end
end
if moved > 0 and state == 'done' then open_run(run) end
return { moved, cutoff, #jobs }
