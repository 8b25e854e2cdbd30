-- Records that attempts did not work: the item waits for its next attempt, or has failed.
-- A halt rule of the run pauses it.
-- Returns the members whose lease had been lost (a repeated fail of the same token is no loss).
-- ARGV: run, worker, then for each item: member, outcome (JSON), seconds, retry delay in seconds or '' (never),
--       output (RQ's form) or ''
go_on_when_full()
local run, worker = ARGV[1], ARGV[2]
local values = redis.call('HMGET', run_key(run), 'retries', 'halt', 'state')
local retries, halt = tonumber(values[1]), values[2]
local lost, seconds, failed = {}, 0, 0
for index = 3, #ARGV, 5 do
  local member, delay = ARGV[index], ARGV[index + 3]
  local job, token = split_member(member)
  if end_lease(run, member) then
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
redis.call('HINCRBYFLOAT', run_key(run), 'work_seconds', seconds)
if failed > 0 and redis.call('EXISTS', R .. 'worker:' .. worker) == 1 then
  redis.call('HINCRBY', R .. 'worker:' .. worker, 'failed_job_count', failed)
end
worker_idle(worker)
settle(run)

-- A percentage counts once three items failed, as in GNU parallel: one early failure is no trend.
local function halts()
  local when, count, percent = string.match(halt, '^(%a+):(%d+):([%d.]+)$')
  if not when then return nil end
  local all_failed = redis.call('ZCARD', registry('failed', run))
  local ended = all_failed + redis.call('ZCARD', registry('finished', run))
  local reached = tonumber(count) > 0 and all_failed >= tonumber(count)
    or tonumber(count) == 0 and all_failed >= 3 and all_failed * 100 >= tonumber(percent) * ended
  return reached and string.format('halted %s: %d item%s failed', when, all_failed, all_failed == 1 and '' or 's') or nil
end

if failed > 0 and redis.call('HGET', run_key(run), 'state') == 'open' then
  local reason = halts()
  if reason then
    redis.call('HSET', run_key(run), 'state', 'paused', 'reason', reason)
    redis.call('ZREM', P .. 'open', run)
    redis.call('INCR', P .. 'control')
    event(run, '0', 'paused')
  end
end
return lost
