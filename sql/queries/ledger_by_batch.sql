-- Where the money went, by batch, oldest first, and all that went call by call in one row. Parameters: none.
select * from money_by_batch order by attempt_id is null, first_at, attempt_id, batch_id;
