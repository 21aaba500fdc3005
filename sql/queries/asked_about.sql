-- The examples that a setup has a question about. Parameters: setup_id.
select example_id::varchar as example_id
from questions
where setup_id = $setup_id::uuid
order by example_id;
