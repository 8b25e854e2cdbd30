-- Tells whoever made the run, and prints what its items print, what an item printed on another worker.
-- Returns 'told', 'full' (too much waits to be read: only that the item ended is told), or 'lost' (the lease is).
-- ARGV: run, member, name, stdout, stderr
go_on_when_full()
local run, member, size = ARGV[1], ARGV[2], #ARGV[4] + #ARGV[5]
if not is_held(run, member) then return 'lost' end
local fits = redis.call('HINCRBY', run_key(run), 'told_bytes', size) <= OUTPUT_BUDGET
if not fits then redis.call('HINCRBY', run_key(run), 'told_bytes', -size) end
local seq = tonumber(string.match(split_member(member), '(%d+)$'))
redis.call('XADD', P .. 'told:' .. run, '*', 's', seq, 'n', ARGV[3], 'o', fits and ARGV[4] or '',
  'e', fits and ARGV[5] or '', 'f', fits and 1 or 0)
return fits and 'told' or 'full'
