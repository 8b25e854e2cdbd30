-- Shows a worker as alive, in RQ's terms too, and tells what is wished of its node.
-- The last node is not kept in quarantine.
-- Returns {time of the server in seconds, why the node is paused or '', this worker's slots or '' (as started),
--          until which time born workers are to stop or '', 'drain' or 'now' or '',
--          why it would be quarantined if it were not the last node, or ''}.
-- ARGV: worker, seconds after which a silent worker is forgotten, how many words about the worker follow,
--       field, value, ... about the worker, field, value, ... about its machine
go_on_when_full()
local worker, silence, words = ARGV[1], ARGV[2], tonumber(ARGV[3])
local key, node = R .. 'worker:' .. worker, node_of(worker)
redis.call('HSET', key, 'last_heartbeat', iso(NOW), unpack(ARGV, 4, 3 + words))
redis.call('HSETNX', key, 'birth', iso(NOW))
redis.call('HSETNX', key, 'state', 'idle')
worker_idle(worker) -- what it ran may have been deleted from a dashboard
redis.call('EXPIRE', key, silence)
redis.call('EXPIRE', key .. ':executions', silence)
redis.call('SADD', R .. 'workers', key)
-- A worker without slots runs all its items on agentless nodes, which have heartbeats of their own.
if redis.call('HGET', key, 'slots') ~= '0' then redis.call('ZADD', P .. 'nodes', NOW, node) end
redis.call('SADD', crew_key(node), worker)
if #ARGV > 3 + words then
  redis.call('HSET', facts_key(node), unpack(ARGV, 4 + words))
  redis.call('EXPIRE', facts_key(node), LOST_SECONDS)
end
local wishes = redis.call('HMGET', node_key(node), 'paused', 'slots', 'stop', 'how')
local why = string.match(wishes[1] or '', '^quarantined: (.*)')
if why and redis.call('ZCOUNT', P .. 'nodes', NOW - 30, '+inf') == 1 then -- the others are gone
  redis.call('HDEL', node_key(node), 'paused')
  redis.call('HSET', facts_key(node), 'doubt', why .. ', but it is the last node')
  wishes[1] = nil
end
local slots = tonumber(wishes[2])
local crew = redis.call('SCARD', crew_key(node)) > 1 and alive_crew(node) or { worker }
if slots then -- they are the node's: its workers share them
  local rest = slots % #crew
  slots = math.floor(slots / #crew)
  for rank = 1, rest do
    if crew[rank] == worker then slots = slots + 1 end
  end
end
return { string.format('%.6f', NOW), wishes[1] or '', slots and tostring(slots) or '', wishes[3] or '', wishes[4] or '',
  redis.call('HGET', facts_key(node), 'doubt') or '' }
