-- Notices what others did: runs whose items were requeued or deleted from a dashboard, abandoned fillings,
-- finished runs past their time, cancels broken off half-way, dead workers, nodes that were lost a day ago.
-- Returns {{runs to purge now}, {runs to cancel to their end}}.
-- ARGV: none
go_on_when_full()
for _, run in ipairs(redis.call('ZRANGE', P .. 'runs', 0, -1)) do notice(run) end
for _, key in ipairs(redis.call('SMEMBERS', R .. 'workers')) do
  if redis.call('EXISTS', key) == 0 then redis.call('SREM', R .. 'workers', key) end
end
for _, run in ipairs(redis.call('ZRANGE', P .. 'runs', 0, -1)) do
  for _, key in ipairs(redis.call('SMEMBERS', R .. 'workers:' .. run)) do
    if redis.call('EXISTS', key) == 0 then redis.call('SREM', R .. 'workers:' .. run, key) end
  end
end
for _, node in ipairs(redis.call('ZRANGEBYSCORE', P .. 'nodes', '-inf', NOW - LOST_SECONDS)) do forget_node(node) end
local gone = redis.call('ZRANGEBYSCORE', P .. 'filling', '-inf', NOW)
for _, run in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ended', '-inf', NOW)) do gone[#gone + 1] = run end
local half = {}
for _, run in ipairs(redis.call('ZRANGE', P .. 'runs', 0, -1)) do
  if redis.call('HGET', run_key(run), 'state') == 'cancelled' and count_left(run) > 0 then half[#half + 1] = run end
end
return { gone, half }
