"""The help of `yolorep compare`, apart from what it runs, so that it is printed at once."""

HELP = """Compare candidates with the stock model on your own data: ARG=VALUE, as for ultralytics' train.

  model=FILE        a model YAML, to train from scratch, or a checkpoint of ultralytics, to fine-tune
  data=FILE         a data YAML with train and val
  rep=CANDIDATE     a block, or '{block: repvgg, identity: none, select: [4], start: even}'; may be repeated
  network=FILE      another network as candidate, such as yolov5n-csprepresnet.yaml; may be repeated
  seeds=3           pairs of runs; stock and rep= of a seed start from the same dense weights
  lr=[1,2,4]        multiples of the learning rate that are tried for every arm; one number: no sweep
  sweep=EPOCHS      length of those runs; half the epochs by default
  jobs=N            runs at the same time; by default one for every two cores, or one per GPU of device=0,1
  int8=True         quantize the deployed models too (yolorep quantize)
  out=FOLDER        runs, logs and the report; yolorep-compare by default

Other arguments are those of ultralytics' train: epochs, imgsz, batch, optimizer (AdamW), lr0, device ...
Defaults that differ: an optimizer step for every batch (nbs=batch), workers=0, plots=False.
A stopped comparison goes on with the same command. seeds and rep can be added to one that has ended.
"""
