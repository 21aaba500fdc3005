-- Internal.
-- The subjects that a setup has a question about. Parameters: setup_id.
select subject_id::varchar as subject_id
from questions
where setup_id = $setup_id::uuid
order by subject_id;
