-- Ends the filling of a run: its items can be claimed. A run that was done and got new items is open again.
-- Returns the state that the run has now, or 'unknown'.
-- ARGV: run
go_on_when_full()
local run = ARGV[1]
local state = redis.call('HGET', run_key(run), 'state')
if not state then return 'unknown' end
if state == 'filling' or (state == 'done' and redis.call('LLEN', queue_key(run)) > 0) then
  open_run(run)
  settle(run)
end
return redis.call('HGET', run_key(run), 'state')
