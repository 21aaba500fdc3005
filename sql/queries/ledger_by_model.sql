-- Where the money went, by model, the dearest first. Parameters: none.
select * from money_by_model order by spent_usd desc, model;
