-- Everything that is known of the nodes, in one look.
-- Returns {time of the server, {node, when it was last heard of, {what is wished of it}, {what its machine told},
--          {name, number of items that run, {pid, slots, leased, rate, stopping, trouble}} of each worker alive}
--          of each node}.
-- ARGV: none
local reply = { string.format('%.6f', NOW) }
local nodes = redis.call('ZRANGEBYSCORE', P .. 'nodes', NOW - LOST_SECONDS, '+inf', 'WITHSCORES')
for index = 1, #nodes, 2 do
  local node = nodes[index]
  local row = { node, nodes[index + 1], redis.call('HGETALL', node_key(node)), redis.call('HGETALL', facts_key(node)) }
  for _, worker in ipairs(redis.call('SMEMBERS', crew_key(node))) do
    local key = R .. 'worker:' .. worker
    if redis.call('EXISTS', key) == 1 then
      row[#row + 1] = { worker, redis.call('SCARD', key .. ':executions'),
        redis.call('HMGET', key, 'pid', 'slots', 'leased', 'rate', 'stopping', 'trouble') }
    end
  end
  reply[#reply + 1] = row
end
return reply
