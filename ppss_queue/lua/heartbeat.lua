-- Shows a worker as alive, in RQ's terms too.
-- Returns the time of the server in seconds, as text.
-- ARGV: worker, seconds after which a silent worker is forgotten, field, value, ...
go_on_when_full()
local key = R .. 'worker:' .. ARGV[1]
redis.call('HSET', key, 'last_heartbeat', iso(NOW), unpack(ARGV, 3))
redis.call('HSETNX', key, 'birth', iso(NOW))
redis.call('HSETNX', key, 'state', 'idle')
worker_idle(ARGV[1]) -- what it ran may have been deleted from a dashboard
redis.call('EXPIRE', key, ARGV[2])
redis.call('EXPIRE', key .. ':executions', ARGV[2])
redis.call('SADD', R .. 'workers', key)
return string.format('%.6f', NOW)
