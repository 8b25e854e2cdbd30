-- Makes a run that is being filled: nobody can claim from it yet.
-- Returns 'created', or 'taken' (the id is in use), or 'named <run>' (an open run has this name).
-- ARGV: run, our schema version, run version, spec (JSON), name or '', weight, visibility seconds, max lost,
--       retries, halt ('' or now|soon:count:percent), keep seconds, seconds until an abandoned filling ends,
--       1 if it has no command or 0, what each item needs ('<GPUs> <CPUs> <bytes of memory>') or ''
local run, name = ARGV[1], ARGV[5]
local refused = check_schema(ARGV[2])
if refused then return refused end
if redis.call('ZCARD', P .. 'runs') == 0 then redis.call('SET', P .. 'rq', R) end
if redis.call('EXISTS', run_key(run)) == 1 or redis.call('SISMEMBER', R .. 'queues', queue_key(run)) == 1
  or redis.call('EXISTS', queue_key(run)) == 1 then
  return 'taken'
end
if name ~= '' then
  local other = redis.call('HGET', P .. 'names', name)
  local state = other and redis.call('HGET', run_key(other), 'state')
  if state and state ~= 'done' and state ~= 'cancelled' then return 'named ' .. other end
  redis.call('HSET', P .. 'names', name, run)
end
redis.call('HSET', run_key(run), 'version', ARGV[3], 'spec', ARGV[4], 'name', name, 'weight', ARGV[6],
  'visibility', ARGV[7], 'max_lost', ARGV[8], 'retries', ARGV[9], 'halt', ARGV[10], 'keep', ARGV[11],
  'bare', ARGV[13],
  'state', 'filling', 'total', 0, 'created', NOW)
if ARGV[14] ~= '' then redis.call('HSET', run_key(run), 'needs', ARGV[14]) end
-- Later than all others, should the clock of the server have gone back: `last` is the one made last.
local latest = tonumber(redis.call('ZREVRANGE', P .. 'runs', 0, 0, 'WITHSCORES')[2] or 0)
redis.call('ZADD', P .. 'runs', math.max(NOW, latest + 1e-6), run)
redis.call('ZADD', P .. 'filling', NOW + tonumber(ARGV[12]), run)
redis.call('SADD', R .. 'queues', queue_key(run))
return 'created'
