-- Internal.
-- Subjects in the order of their ids. Parameters: after (an id), first (from the beginning), count.
select subject_id::varchar as subject_id, kind, content
from subjects
where $first or subject_id > $after::uuid
order by subjects.subject_id
limit $count;
