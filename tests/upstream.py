"The code of the Hugging Face tutorial, word for word and in order: its text of 2023, and that of February 2026"
import ast

text_2023 = {
    "install": '''
# pip install transformers datasets evaluate
''',
    "load": '''
from datasets import load_dataset
eli5 = load_dataset("eli5", split="train_asks[:5000]")
''',
    "split": '''
eli5 = eli5.train_test_split(test_size=0.2)
''',
    "tokenizer": '''
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("distilgpt2")
''',
    "tokenize": '''
eli5 = eli5.flatten()
def preprocess_function(examples):
    return tokenizer([" ".join(x) for x in examples["answers.text"]])
tokenized_eli5 = eli5.map(
    preprocess_function,
    batched=True,
    num_proc=4,
    remove_columns=eli5["train"].column_names,
)
''',
    "group": '''
block_size = 128
def group_texts(examples):
    # Concatenate all texts.
    concatenated_examples = {k: sum(examples[k], []) for k in examples.keys()}
    total_length = len(concatenated_examples[list(examples.keys())[0]])
    # We drop the small remainder, we could add padding if the model supported it instead of this drop, you can
    # customize this part to your needs.
    if total_length >= block_size:
        total_length = (total_length // block_size) * block_size
    # Split by chunks of block_size.
    result = {
        k: [t[i : i + block_size] for i in range(0, total_length, block_size)]
        for k, t in concatenated_examples.items()
    }
    result["labels"] = result["input_ids"].copy()
    return result
lm_dataset = tokenized_eli5.map(group_texts, batched=True, num_proc=4)
''',
    "collate": '''
# This will use the inputs as labels shifted to the right by one element:
from transformers import DataCollatorForLanguageModeling
tokenizer.pad_token = tokenizer.eos_token
data_collator = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)
''',
    "model": '''
from transformers import AutoModelForCausalLM, TrainingArguments, Trainer
model = AutoModelForCausalLM.from_pretrained("distilgpt2")
''',
    "arguments": '''
training_args = TrainingArguments(
    output_dir="my_awesome_eli5_clm-model",
    evaluation_strategy="epoch",
    learning_rate=2e-5,
    weight_decay=0.01,
    push_to_hub=True,
)
''',
    "train": '''
trainer = Trainer(
    model=model,
    args=training_args,
    train_dataset=lm_dataset["train"],
    eval_dataset=lm_dataset["test"],
    data_collator=data_collator,
)
trainer.train()
''',
    "evaluate": '''
import math
eval_results = trainer.evaluate()
print(f"Perplexity: {math.exp(eval_results['eval_loss']):.2f}")
''',
    "share": '''
trainer.push_to_hub()
''',
    "pipeline": '''
prompt = "Somatic hypermutation allows the immune system to"
from transformers import pipeline
generator = pipeline("text-generation", model="my_awesome_eli5_clm-model")
generator(prompt)
''',
    "generate": '''
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("my_awesome_eli5_clm-model")
inputs = tokenizer(prompt, return_tensors="pt").input_ids
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("my_awesome_eli5_clm-model")
outputs = model.generate(inputs, max_new_tokens=100, do_sample=True, top_k=50, top_p=0.95)
tokenizer.batch_decode(outputs, skip_special_tokens=True)
''',
    "tensorflow": '''
from transformers import create_optimizer, AdamWeightDecay, TFAutoModelForCausalLM
from transformers.keras_callbacks import PushToHubCallback
''',
}

changes = {  # what February 2026 made of it
    "load": [('"eli5", split="train_asks[:5000]"', '"dany0407/eli5_category", split="train[:5000]"')],
    "tokenizer": [('"distilgpt2"', '"distilbert/distilgpt2"')],
    "model": [('"distilgpt2"', '"distilbert/distilgpt2"')],
    "arguments": [("evaluation_strategy", "eval_strategy")],
    "train": [("data_collator=data_collator,\n", "data_collator=data_collator,\n    processing_class=tokenizer,\n")],
    "pipeline": [('"my_awesome', '"username/my_awesome')],
    "generate": [('"my_awesome', '"username/my_awesome')],
}


def rewritten(piece: str, code: str) -> str:
    for old, new in changes.get(piece, []):
        assert old in code
        code = code.replace(old, new)
    return code


text_2026 = {piece: rewritten(piece, code) for piece, code in text_2023.items() if piece != "tensorflow"}
texts = {"2023": text_2023, "2026": text_2026}


def function(name: str, **names):
    "One of the tutorial's functions, the same in both texts, where these names are known"
    pieces = map(ast.parse, text_2026.values())
    found = [node for piece in pieces for node in piece.body if getattr(node, "name", None) == name]
    exec(compile(ast.Module(found, []), f"<{name}>", "exec"), names)
    return names[name]
