-- Shows that leased items run: their attempt counts from `begin` on (a plain ZADD, see lib.lua), and is counted here
-- or at its end. Sent for items that run for more than a moment.
-- Returns the members that are no longer leased by this token.
-- A repeated start of the same lease counts once.
-- ARGV: run, worker, then for each item: member (<job>:<token>), slot
go_on_when_full()
local run, worker = ARGV[1], ARGV[2]
local lost, now = {}, iso(NOW)
redis.call('SADD', R .. 'workers:' .. run, R .. 'worker:' .. worker) -- another one than claimed, for an agentless node
for index = 3, #ARGV, 2 do
  local member = ARGV[index]
  local job, token = split_member(member)
  if not is_held(run, member) then
    lost[#lost + 1] = member
  elseif redis.call('EXISTS', R .. 'execution:' .. member) == 0 then
    local score = tonumber(redis.call('ZSCORE', registry('wip', run), member))
    if score < BEGUN then redis.call('ZADD', registry('wip', run), score + BEGUN - CENTURY, member) end
    redis.call('HINCRBY', job_key(job), 'attempts', 1)
    redis.call('HSET', job_key(job), 'status', 'started', 'worker_name', worker, 'started_at', now, 'token', token)
    redis.call('ZADD', R .. 'executions:' .. job, NOW + CENTURY, token)
    redis.call('HSET', R .. 'execution:' .. member, 'id', token, 'job_id', job, 'created_at', NOW,
      'last_heartbeat', NOW, 'worker_name', worker, 'slot', ARGV[index + 1])
    local executions = R .. 'worker:' .. worker .. ':executions'
    redis.call('SADD', executions, member)
    if redis.call('TTL', executions) == -1 then redis.call('EXPIRE', executions, 60) end
    -- Not if the worker was silent for so long that it is forgotten: nobody would remove it again.
    if redis.call('EXISTS', R .. 'worker:' .. worker) == 1 then
      redis.call('HSET', R .. 'worker:' .. worker, 'state', 'busy', 'current_job', job)
    end
  end
end
return lost
