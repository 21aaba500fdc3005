-- What can be named: graders and rubrics with their label, NAME for version 1 and NAME@2 from then on. Parameters: none.
select 'grader' as kind, name, version, label from grader_labels
union all
select 'rubric', name, version, label from rubric_labels
order by kind, name, version;
