-- Forgets a run that ended (or was abandoned while filling), in chunks; from the first on nobody sees it.
-- Call it until it returns 0. Returns the items still to delete, or 'unknown' or the state of a live run.
-- ARGV: run, chunk
go_on_when_full()
local run, chunk = ARGV[1], tonumber(ARGV[2])
local values = redis.call('HMGET', run_key(run), 'state', 'total', 'purged', 'name')
local state, total, purged, name = values[1], tonumber(values[2]), tonumber(values[3]), values[4]
if not state then
  for _, set in ipairs({ 'filling', 'open', 'ended', 'runs' }) do redis.call('ZREM', P .. set, run) end
  return 'unknown'
end
if not purged then
  local deadline = redis.call('ZSCORE', P .. 'filling', run)
  local abandoned = state == 'filling' and (not deadline or tonumber(deadline) <= NOW)
  if state == 'done' and redis.call('LLEN', queue_key(run)) > 0 then
    open_run(run)
    return 'open'
  end
  if not abandoned and state ~= 'done' and state ~= 'cancelled' then return state end
  redis.call('HSET', run_key(run), 'state', 'cancelled')
  redis.call('ZREM', P .. 'runs', run)
  redis.call('ZREM', P .. 'filling', run)
  redis.call('ZADD', P .. 'ended', 0, run)
  redis.call('SREM', R .. 'queues', queue_key(run))
  redis.call('UNLINK', queue_key(run))
  if redis.call('HGET', P .. 'names', name) == run then redis.call('HDEL', P .. 'names', name) end
  purged = 0
end
local last = math.min(purged + chunk, total)
for seq = purged + 1, last do
  local job = string.format('%s-%07d', run, seq)
  local token = redis.call('HGET', job_key(job), 'token')
  if token then drop_execution(job .. ':' .. token) end
  redis.call('UNLINK', job_key(job), R .. 'results:' .. job, R .. 'executions:' .. job)
end
redis.call('HSET', run_key(run), 'purged', last)
if last < total then return total - last end
for _, member in ipairs(redis.call('ZRANGE', registry('wip', run), 0, -1)) do drop_execution(member) end
for _, set in ipairs({ 'wip', 'scheduled', 'finished', 'failed', 'canceled', 'workers', 'clean_registries' }) do
  redis.call('UNLINK', registry(set, run))
end
redis.call('UNLINK', run_key(run), P .. 'events:' .. run, P .. 'outputs:' .. run, P .. 'told:' .. run, queue_key(run),
  doubts_key(run), record_key(run))
redis.call('ZREM', P .. 'ended', run)
return 0
