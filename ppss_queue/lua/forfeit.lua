-- Takes back the leases of items that were lost with the host on which they ran; their worker lives.
-- They go to the front of the ready list, in the order given, or fail, as if their worker had died.
-- Returns how many were handed back; those that were lost meanwhile are left alone.
-- ARGV: run, worker, member...
go_on_when_full()
local max_lost = tonumber(redis.call('HGET', run_key(ARGV[1]), 'max_lost')) or 0
return hand_back(ARGV, function(run, member) return take_back(run, member, max_lost) end)
