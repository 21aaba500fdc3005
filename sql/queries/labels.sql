-- Internal.
-- What can be named: graders and rubrics with their label, NAME for version 1 and NAME@2 from then on; whether it is
-- listed: something was answered, and nobody has hidden it. Parameters: none.
with answered as (
    select distinct grader_id, rubric_id from setups
    where setup_id in (select setup_id from questions join replies using (key))
)
select
    'grader' as kind, name, version, label, grader_id::varchar as id, fingerprint,
    grader_id in (select grader_id from answered) as listed
from grader_labels
union all
select 'rubric', name, version, label, rubric_id::varchar, null,
    not hidden and rubric_id in (select rubric_id from answered)
from rubric_labels
order by kind, name, version;
