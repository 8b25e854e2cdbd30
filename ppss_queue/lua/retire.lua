-- Removes a worker that has stopped, after it handed its leases back.
-- Returns 'retired'.
-- ARGV: worker, run... (those it had items of)
local key = R .. 'worker:' .. ARGV[1]
for index = 2, #ARGV do redis.call('SREM', R .. 'workers:' .. ARGV[index], key) end
redis.call('SREM', R .. 'workers', key)
redis.call('DEL', key, key .. ':executions')
return 'retired'
