-- The rows of marked_rows that are kept, or `part` of them at random, as the temporary table kept_rows. The random
-- sample of a smaller part lies inside that of a larger one. Parameters: part (null for all), seed.
create or replace temp table kept_rows as
select position, example_id
from marked_rows
where why is null
order by md5(concat_ws(' ', 'nested', $seed::varchar, example_id::varchar, copy::varchar))
limit $part;
