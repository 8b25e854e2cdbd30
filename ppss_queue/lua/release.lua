-- Hands leased items back to the front of the ready list, in the order given; not an attempt that failed.
-- Returns how many were handed back; those that were lost meanwhile are left alone.
-- ARGV: run, worker, member...
go_on_when_full()
return hand_back(ARGV, end_lease)
