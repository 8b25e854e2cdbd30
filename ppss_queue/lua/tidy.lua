-- Notices what others did: runs whose items were requeued or deleted from a dashboard, abandoned fillings,
-- finished runs past their time, dead workers.
-- Returns the runs to purge now.
-- ARGV: none
go_on_when_full()
for _, run in ipairs(redis.call('ZRANGE', P .. 'runs', 0, -1)) do settle(run) end
for _, run in ipairs(redis.call('ZRANGE', P .. 'ended', 0, -1)) do
  if redis.call('HGET', run_key(run), 'state') == 'done' and redis.call('LLEN', queue_key(run)) > 0 then
    open_run(run)
  end
end
for _, key in ipairs(redis.call('SMEMBERS', R .. 'workers')) do
  if redis.call('EXISTS', key) == 0 then redis.call('SREM', R .. 'workers', key) end
end
for _, run in ipairs(redis.call('ZRANGE', P .. 'runs', 0, -1)) do
  for _, key in ipairs(redis.call('SMEMBERS', R .. 'workers:' .. run)) do
    if redis.call('EXISTS', key) == 0 then redis.call('SREM', R .. 'workers:' .. run, key) end
  end
end
local gone = redis.call('ZRANGEBYSCORE', P .. 'filling', '-inf', NOW)
for _, run in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ended', '-inf', NOW)) do gone[#gone + 1] = run end
return gone
