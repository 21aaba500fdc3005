-- Internal.
-- Examples in the order of their ids. Parameters: after (an id), first (from the beginning), count.
select example_id::varchar as example_id, id_version, system, turns, instruction, input, output
from examples
where $first or example_id > $after::uuid
order by examples.example_id
limit $count;
