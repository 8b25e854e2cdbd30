-- A paused run hands items out again.
-- Returns the state before, or 'unknown'.
-- ARGV: run
go_on_when_full()
local run = ARGV[1]
local state = redis.call('HGET', run_key(run), 'state')
if state == 'paused' then
  open_run(run)
  settle(run)
end
return state or 'unknown'
