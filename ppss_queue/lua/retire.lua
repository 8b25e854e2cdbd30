-- Removes a worker that has stopped, after it handed its leases back; its node, too, if that has no other.
-- Returns 'retired'.
-- ARGV: worker, run... (those it had items of)
local worker = ARGV[1]
local key, node = R .. 'worker:' .. worker, node_of(worker)
for index = 2, #ARGV do redis.call('SREM', R .. 'workers:' .. ARGV[index], key) end
redis.call('SREM', R .. 'workers', key)
redis.call('DEL', key, key .. ':executions')
redis.call('SREM', crew_key(node), worker)
if #alive_crew(node) == 0 then forget_node(node) end
return 'retired'
