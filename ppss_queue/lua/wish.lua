-- Tells the workers of a node, now and as they come, what somebody wishes of it.
-- Returns 'told', 'unknown', or 'alive' (only a node that is lost can be forgotten).
-- ARGV: node, then: pause, reason | resume | slots, number or '' (as started) | stop, drain or now |
--       forget, gone (its workers were killed, whatever their last heartbeats say) or ''
go_on_when_full()
local node, what, value = ARGV[1], ARGV[2], ARGV[3]
local key = node_key(node)
if redis.call('EXISTS', key, facts_key(node)) == 0 then return 'unknown' end
if what == 'forget' then
  if value ~= 'gone' and #alive_crew(node) > 0 then return 'alive' end
  forget_node(node)
  redis.call('DEL', key)
  return 'told'
end
if what == 'pause' then
  redis.call('HSET', key, 'paused', value)
elseif what == 'resume' then
  redis.call('HDEL', key, 'paused')
  redis.call('HDEL', facts_key(node), 'doubt')
  for _, run in ipairs(redis.call('ZRANGE', P .. 'runs', 0, -1)) do
    redis.call('HDEL', record_key(run), node, node .. '!')
  end
elseif what == 'slots' and value == '' then
  redis.call('HDEL', key, 'slots')
elseif what == 'slots' then
  redis.call('HSET', key, 'slots', value)
else
  redis.call('HSET', key, 'stop', string.format('%.6f', NOW), 'how', value)
end
-- Whose node it is: another machine may come under this name.
local id = redis.call('HGET', facts_key(node), 'id')
if id then redis.call('HSET', key, 'id', id) end
if redis.call('HLEN', key) == 1 then redis.call('HDEL', key, 'id') end
redis.call('INCR', P .. 'control')
return 'told'
