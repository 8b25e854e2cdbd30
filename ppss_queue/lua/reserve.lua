-- Reserves output file names for an item, all or none: the first item of a run to publish a name owns it.
-- Returns 'lost' (the lease is), or a list: empty if all are reserved, else name, owner's job, owner's text ...
-- ARGV: run, member, name...
go_on_when_full()
local run, member = ARGV[1], ARGV[2]
local job = split_member(member)
local key = P .. 'outputs:' .. run
if not is_held(run, member) then return 'lost' end
local taken = {}
for index = 3, #ARGV do
  local owner = redis.call('HGET', key, ARGV[index])
  if owner and owner ~= job then
    taken[#taken + 1] = ARGV[index]
    taken[#taken + 1] = owner
    taken[#taken + 1] = redis.call('HGET', job_key(owner), 'description') or ''
  end
end
if #taken == 0 then
  for index = 3, #ARGV do redis.call('HSET', key, ARGV[index], job) end
end
return taken
