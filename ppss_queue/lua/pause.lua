-- A run hands nothing out until it is resumed; what runs goes on.
-- Returns the state before, or 'unknown'.
-- ARGV: run
go_on_when_full()
local run = ARGV[1]
local state = redis.call('HGET', run_key(run), 'state')
if state == 'open' then
  redis.call('HSET', run_key(run), 'state', 'paused')
  redis.call('ZREM', P .. 'open', run)
  redis.call('INCR', P .. 'control')
end
return state or 'unknown'
