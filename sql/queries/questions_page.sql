-- Internal.
-- The questions of a setup with what each is about, in the order of their keys: the row, or the content of another
-- subject. Parameters: setup_id, after (a key), first (from the beginning), count.
select
    q.key::varchar as key, q.id_version, q.sample, q.subject_id::varchar as subject_id,
    q.example_id::varchar as example_id,
    s.content, e.system, e.turns, e.instruction, e.input, e.output
from questions q
left join subjects s using (subject_id)
left join examples e on e.example_id = q.subject_id
where q.setup_id = $setup_id::uuid and ($first or q.key > $after::uuid)
order by q.key
limit $count;
