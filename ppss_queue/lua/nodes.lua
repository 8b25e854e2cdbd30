-- Everything that is known of the nodes, in one look.
-- Returns, as JSON: [time of the server, [node, when it was last heard of, why it is paused or false,
--          [what its machine told: hostname, version, load, cores, memory, memory_free, scratch_free, scratch_limit,
--          doubt, each a string or false],
--          [name, number of items that run, [pid, slots, leased, rate, stopping, trouble]] of each worker alive ...]
--          of each node ...]. As strings of one reply they would cost twice the time.
-- ARGV: none
local reply = { string.format('%.6f', NOW) }
local nodes = redis.call('ZRANGEBYSCORE', P .. 'nodes', NOW - LOST_SECONDS, '+inf', 'WITHSCORES')
for index = 1, #nodes, 2 do
  local node = nodes[index]
  local row = { node, nodes[index + 1], redis.call('HGET', node_key(node), 'paused'),
    redis.call('HMGET', facts_key(node), 'hostname', 'version', 'load', 'cores', 'memory', 'memory_free',
      'scratch_free', 'scratch_limit', 'doubt') }
  for _, worker in ipairs(redis.call('SMEMBERS', crew_key(node))) do
    local key = R .. 'worker:' .. worker
    local told = redis.call('HMGET', key, 'pid', 'slots', 'leased', 'rate', 'stopping', 'trouble')
    if told[1] then row[#row + 1] = { worker, redis.call('SCARD', key .. ':executions'), told } end
  end
  reply[#reply + 1] = row
end
return cjson.encode(reply)
